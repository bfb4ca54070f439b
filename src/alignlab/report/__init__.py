"""Reports: `build.build_report` from run folders, `study.build_study` from findings; `console.print_summary`."""
