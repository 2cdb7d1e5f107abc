"""`dnas reproduce`: reproduce a table or figure of the paper from new runs and compare it with the published one."""
