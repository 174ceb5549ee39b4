"""Rewards of post-training and judges that measure it: functions of drawn samples, one file a subject."""
