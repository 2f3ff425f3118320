"""Texts of words that are, or look like, personal data."""

from hypothesis import strategies as st

WORDS = (
    "Anna", "call", "030 901820", "Schmidt", "and", "Mr", "<PERSON_1>", "at", "12 Baker Street",
    "Berlin,", "a@b.org", "Will", "\n", "the", "Walk", "May", "<EMAIL_2>", "-", "(", "O'Brien",
    "no. 7",
)  # fmt: skip
texts = st.lists(st.sampled_from(WORDS), max_size=14).map(" ".join)
