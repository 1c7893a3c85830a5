"""The satellite side: scene -> symbols -> chunks -> outbox -> link."""
