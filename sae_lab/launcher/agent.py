"""The process that watches over the workers of one training."""

from .elastic import watch

if __name__ == "__main__":
    watch()
