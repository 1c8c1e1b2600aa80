"""Bytes to messages and back, for Pyro's protocols 48 and 502. No I/O, no clock, no serializer."""

from __future__ import annotations

from .blobinfo import BLOB_INFO as BLOB_INFO
from .blobinfo import BlobInfo as BlobInfo
from .blobinfo import read_blob_info as read_blob_info
from .blobinfo import write_blob_info as write_blob_info
from .codec import Codec as Codec
from .codec import codec_for as codec_for
from .decoder import Decoder as Decoder
from .features import DEADLINE_KEY as DEADLINE_KEY
from .features import FEATURES_KEY as FEATURES_KEY
from .features import HOP_KEYS as HOP_KEYS
from .features import OUTCOME_KEY as OUTCOME_KEY
from .features import STOCK as STOCK
from .features import Feature as Feature
from .features import Grant as Grant
from .features import new_offer as new_offer
from .features import overheard as overheard
from .message import Body as Body
from .message import BodyPart as BodyPart
from .message import End as End
from .message import Flags as Flags
from .message import Head as Head
from .message import Message as Message
from .message import MessageType as MessageType
from .patch import hops_of as hops_of
from .patch import renumber as renumber
from .patch import with_annotation as with_annotation
from .patch import with_hops as with_hops
from .pieces import MAX_BODIES as MAX_BODIES
from .pieces import MAX_PIECE as MAX_PIECE
from .pieces import begin as begin
from .pieces import read_begin as read_begin
from .proof import AUTH_KEY as AUTH_KEY
from .proof import Prover as Prover
from .session import alive as alive
from .session import last_read as last_read
from .session import sent_after as sent_after
from .v48 import V48 as V48
from .v502 import V502 as V502
