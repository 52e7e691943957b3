"""Text becomes blocks of tokens: any text, cut to a model's context, block by block and without a memory."""

from .blocks import Blocks, TokenBlock, token_blocks
