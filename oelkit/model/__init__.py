"""The room that knows torch, Transformers and PEFT: the policy, sampling, losses, and what they
need.
"""
