"""What an installation can do, and the line that mends what it cannot. Only the standard library is imported here."""
