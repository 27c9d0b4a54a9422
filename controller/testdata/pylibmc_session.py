"""A scripted pylibmc (libmemcached) session. Argument: the port of the server."""
import sys

import pylibmc

server = "127.0.0.1:" + sys.argv[1]


def want(got, expected):
    assert got == expected, f"got {got!r}, want {expected!r}"


def refused(error, call, *args):
    try:
        got = call(*args)
    except error:
        return
    assert got is False, f"got {got!r}, want {error}"


for binary in (False, True):
    for behaviors in ({"cas": True}, {"cas": True, "tcp_nodelay": True, "ketama": True}, {"cas": True, "buffer_requests": False, "no_block": True}):
        c = pylibmc.Client([server], binary=binary, behaviors=behaviors)
        c.flush_all()
        want(c.set("a", "text"), True)
        want(c.get("a"), "text")
        want(c.get("nothing"), None)
        for value in (7, -1, 3.5, b"\x00\xff\r\n", {"list": [1, 2]}, "x" * 500000, ""):
            want(c.set("v", value, time=100), True)
            want(c.get("v"), value)
        want(c.add("a", 1), False)
        want(c.add("b", 1), True)
        refused(pylibmc.NotFound, c.replace, "nothing", 1)
        want(c.replace("b", 2), True)
        want(c.set_multi({"k%d" % i: i for i in range(100)}), [])
        want(c.get_multi(["k%d" % i for i in range(200)]), {"k%d" % i: i for i in range(100)})
        value, unique = c.gets("b")
        want(value, 2)
        want(c.cas("b", 3, unique), True)
        want(c.cas("b", 4, unique), False)
        want(c.get("b"), 3)
        want(c.set("n", 10), True)
        want(c.incr("n"), 11)
        want(c.incr("n", 31), 42)
        want(c.decr("n", 2), 40)
        refused(pylibmc.NotFound, c.incr, "nothing")
        c.set("t", b"b")
        want(c.append("t", b"c"), True)
        want(c.prepend("t", b"a"), True)
        want(c.get("t"), b"abc")
        want(c.touch("t", 100), True)
        want(c.touch("nothing", 100), False)
        want(c.delete("t"), True)
        want(c.delete("t"), False)
        want(c.delete_multi(["k1", "k2"]), True)
        want(c.get_multi(["k1", "k2", "k3"]), {"k3": 3})
        stats = c.get_stats()
        assert int(stats[0][1]["curr_items"]) > 0, stats
        c.disconnect_all()
print("ok")
