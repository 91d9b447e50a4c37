"""Compiled inner loops of a decoder's layers on one CPU thread.

Arrays hold float32, or bfloat16 as its bits in int16; arithmetic is in float32 either way.
"""
