"""What is wrong with the data, before training starts: findings as text, JSON and one page (docs/doctor.md).

examination.py puts the others together. What worker processes import loads no torch.
"""
