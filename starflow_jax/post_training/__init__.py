"""Post-training: a finished flow is trained further on a reward or on preferences, by its exact likelihood.

- `objectives`: policy gradient and preferences as functions of log-likelihoods.
- `policy_update`: the update as one compiled program; `drawn_samples`: samples of the current flow with their figures.
- `preference_pairs`: files of pairs.
- `post_training_setup`: the base run, the conditions and the rewards, opened and checked.
- `post_train`: the training, from the first step or the last checkpoint to the end.
"""
