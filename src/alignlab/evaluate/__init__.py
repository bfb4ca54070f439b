"""What a trained model is worth: `evaluate_policy` and `evaluate_reward_model`, and their files."""
