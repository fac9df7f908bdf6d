"""The gateway through which handlers reach the internet and nothing inside."""
