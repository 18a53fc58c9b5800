"""`python -m maskedclip` is `maskedclip`."""

from maskedclip.cli import main

if __name__ == "__main__":
    main()
