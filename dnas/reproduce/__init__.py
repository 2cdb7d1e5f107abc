"""`dnas reproduce`: a table or figure of the paper from one's own trainings, beside what was published."""
