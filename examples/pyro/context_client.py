import sys
import uuid

import pyroxfer_core.blocking as pyro

context = pyro.current_context
with pyro.Proxy(sys.argv[1]) as tracked:
    for tenant in ("north", "south"):
        context.correlation_id = uuid.UUID(int=len(tenant))
        context.annotations = {"TENT": tenant.encode()}
        print(tracked.handle(), bytes(context.response_annotations["DONE"]).decode())
