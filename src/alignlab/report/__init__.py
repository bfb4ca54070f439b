"""Reports from run folders: `alignlab.report.build.build_report`, and `alignlab.report.console.print_summary`."""
