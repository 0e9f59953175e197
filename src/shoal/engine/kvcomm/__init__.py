"""KVCOMM: cache of texts that agents pass on, moved between contexts and corrected by anchors.

"KVCOMM: Online Cross-context KV-cache Communication for Efficient LLM-based Multi-agent Systems"
(arXiv 2510.12872). ``anchors`` holds equations 5 to 7, ``templates`` what stays and what changes
in a prompt, ``gate`` and ``deciding`` when an approximation may be used, ``engine`` puts them to
work.
"""

from shoal.engine.kvcomm.anchors import Anchor, AnchorPool
from shoal.engine.kvcomm.engine import KVComm
from shoal.engine.kvcomm.gate import Gate
from shoal.engine.kvcomm.policy import Call, CommPolicy

__all__ = ["Anchor", "AnchorPool", "Call", "CommPolicy", "Gate", "KVComm"]
