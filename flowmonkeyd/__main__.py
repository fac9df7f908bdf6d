"""`python -m flowmonkeyd` is `flowmonkeyd`."""

from flowmonkeyd.main import main

if __name__ == "__main__":
    main()
