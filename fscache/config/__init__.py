"""What people configure, as typed records, and how files of several forms become them."""
