"""The E3 suite: five configurations of training-efficiency features, their claims, and what runs say of those."""
