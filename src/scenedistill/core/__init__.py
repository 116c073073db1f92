"""What every room uses: errors, files written whole, the machine, text for people."""
