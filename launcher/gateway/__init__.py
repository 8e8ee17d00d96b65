"""The one stable endpoint of a served model, in front of whatever engine runs behind it.

How it is built
---------------
`policy` decides and knows neither clock nor sockets: whether an arriving request is forwarded, held or refused, and
what becomes of one whose engine was lost. `events` frames server-sent events and words the last one of a stream that
was cut. `line` is the one owner of who runs and who waits. `front` is the HTTP server with its bounds, `exchange`
carries one request through, `meters` counts, `metrics` and `health` tell. `gateway.Gateway` ties them together; it is
all that a supervisor sees.

How a supervisor uses it
------------------------
From its event loop::

    gateway = Gateway(profile_name, limits=Limits(n_running=plan.n_parallel), keys=keys)
    address = await gateway.start(plan.address)            # answers from now on; requests wait
    gateway.attach("http://127.0.0.1:40123")               # an engine has proved itself: requests flow
    gateway.detach("the engine was killed by signal 9")    # it is lost: running requests are replayed or told
    await gateway.drain(30.0, "stepping down")             # the same, but running requests may end first
    gateway.publish(Status(...))                           # what /health and /metrics say of the instance
    gateway.observe(Observed(...))                         # what /metrics says of memories and devices
    await gateway.stop(10.0)                               # waiting requests are refused, running ones may end

`n_running` is what the engine serves side by side: 1 for llama-cpp-python, which otherwise interrupts one stream for the
next; `n_parallel`, or one more to have the next prompt at hand, for llama-server; nothing for vLLM, which queues well.
The engine's own address must not be the gateway's: give it a free port of 127.0.0.1, and where clients need a key, a key
of its own, which `attach` takes. `load` tells how busy it is, for how long a busy engine has been silent, how many of its answers were
errors, and how fast it streams. `in_turn` lets a supervisor ask the engine something without getting in the way of a request.

`attach` after `detach` or `drain` opens the door again, for an engine at another address or the same. The gateway never
starts, stops or probes an engine, and never decides that one is lost: it only holds a request whose engine broke the
connection until it is told more.
"""
