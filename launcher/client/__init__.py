"""Asks the endpoint of a served instance, as any client of it does: conversations, and the figures it tells of itself.

`endpoint` says where one is and speaks HTTP with it, `chat_events` reads the stream of an answer, `conversation` is what
was said so far, `chat` has one answered. It must not know records, terminals or engines.
"""
