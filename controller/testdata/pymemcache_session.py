"""A scripted pymemcache session. Argument: the port of the server."""
import sys

from pymemcache.client.base import Client, PooledClient
from pymemcache.client.hash import HashClient
from pymemcache.exceptions import MemcacheClientError

server = ("127.0.0.1", int(sys.argv[1]))


def want(got, expected):
    assert got == expected, f"got {got!r}, want {expected!r}"


for make in (
    lambda: Client(server, connect_timeout=5, timeout=5),
    lambda: Client(server, default_noreply=False, timeout=5),
    lambda: PooledClient(server, max_pool_size=4, timeout=5),
    lambda: HashClient([server], timeout=5),
):
    c = make()
    c.set("a", "1", noreply=False)
    want(c.get("a"), b"1")
    want(c.get("nothing"), None)
    want(c.get("nothing", "default"), "default")
    want(c.add("a", "2", noreply=False), False)
    want(c.add("b", "2", noreply=False), True)
    want(c.replace("nothing", "2", noreply=False), False)
    want(c.replace("b", "3", noreply=False), True)
    c.append("b", "4")
    c.prepend("b", "2")
    want(c.get("b"), b"234")
    want(c.set_many({"k%d" % i: "v%d" % i for i in range(200)}), [])
    want(c.get_many(["k%d" % i for i in range(0, 400, 2)]), {"k%d" % i: b"v%d" % i for i in range(0, 200, 2)})
    value, unique = c.gets("a")
    want(value, b"1")
    want(c.cas("a", "2", unique, noreply=False), True)
    want(c.cas("a", "3", unique, noreply=False), False)
    want(c.cas("nothing", "3", unique, noreply=False), None)
    want(c.get("a"), b"2")
    want(c.incr("a", 40), 42)
    want(c.decr("a", 2), 40)
    want(c.incr("nothing", 1), None)
    c.incr("a", 1, noreply=True)
    want(c.get("a"), b"41")
    want(c.touch("a", 100, noreply=False), True)
    want(c.touch("nothing", 100, noreply=False), False)
    c.set("noreply", b"\x00\r\nEND\r\n\xff" * 1000, expire=100)
    want(c.get("noreply"), b"\x00\r\nEND\r\n\xff" * 1000)
    want(c.delete("a", noreply=False), True)
    want(c.delete("a", noreply=False), False)
    c.delete_many(["k1", "k2"])
    want(c.get_many(["k1", "k2", "k3"]), {"k3": b"v3"})
    c.flush_all(noreply=False)
    want(c.get("k3"), None)
    c.close()

c = Client(server, default_noreply=False)
c.set("g", "x")
want(c.version(), b"1.6.45")
stats = c.stats()
assert stats[b"cmd_set"] > 0 and stats[b"curr_items"] > 0, stats
assert c.stats("settings")
c.close()
try:
    Client(server).incr("g", 1)
    raise AssertionError("incr of a text succeeded")
except MemcacheClientError as e:
    assert "non-numeric" in str(e), e
print("ok")
