"""The script that made the embedded Llama: tokenizer, training, chat sibling, check. See `__main__.py`.

Unusual here: attention by blocks and a fused head, because a tiny Llama on CPU spends its time there (`net.py`); text
made ahead by a second process (`stream.py`); a schedule that can be told at any moment to come to its end (`run.py`).
"""
