"""The main job from end to end, as values: read, choose, twin, plan, drive, prove, give back."""
