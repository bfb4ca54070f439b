def evaluate(policy):
    return {}
