package controller

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/internal/attunetest"
)

func TestPipelineIsAnsweredInOrder(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		var ask, reply strings.Builder
		for i := range 1000 {
			switch i % 5 {
			case 0:
				fmt.Fprintf(&ask, "set k%d 7 0 4\r\nv%03d\r\n", i, i)
				reply.WriteString("STORED\r\n")
			case 1:
				fmt.Fprintf(&ask, "get k%d nope k%d\r\n", i-1, i-1)
				value := fmt.Sprintf("VALUE k%d 7 4\r\nv%03d\r\n", i-1, i-1)
				reply.WriteString(value + value + "END\r\n")
			case 2:
				fmt.Fprintf(&ask, "mg k%d s v\r\n", i-2)
				fmt.Fprintf(&reply, "VA 4 s4\r\nv%03d\r\n", i-2)
			case 3:
				fmt.Fprintf(&ask, "delete k%d\r\n", i-3)
				reply.WriteString("DELETED\r\n")
			case 4:
				ask.WriteString("nonsense\r\nmn\r\n")
				reply.WriteString("ERROR\r\nMN\r\n")
			}
		}
		c.ask(ask.String(), reply.String())
	})
}

// story is a bit of everything. It begins by flushing, so it can be told again.
const story = "flush_all\r\nset a 1 0 5\r\nhello\r\nadd a 0 0 1\r\nx\r\nappend a 0 0 1\r\n!\r\nget a b a\r\n" +
	"set quiet 0 0 2 noreply\r\nok\r\nincr quiet 1\r\nset n 0 0 1\r\n9\r\nincr n 1\r\ndecr n 20\r\n" +
	"set bad 0 0 3\r\nlong!\r\nget bad\nms m 3 T0\r\nabc\r\nmg m v k t s\r\nmg none v q\r\nmd m q\r\nmn\r\n" +
	"gat 0 a none\r\ntouch none 0\r\ndelete a\r\nGET a\r\nversion\r\n"

const storyReplies = "OK\r\nSTORED\r\nNOT_STORED\r\nSTORED\r\nVALUE a 1 6\r\nhello!\r\nVALUE a 1 6\r\nhello!\r\nEND\r\n" +
	"CLIENT_ERROR cannot increment or decrement non-numeric value\r\nSTORED\r\n10\r\n0\r\n" +
	"CLIENT_ERROR bad data chunk\r\nCLIENT_ERROR bad command line format\r\nEND\r\nHD\r\nVA 3 km t-1 s3\r\nabc\r\nMN\r\n" +
	"VALUE a 1 6\r\nhello!\r\nEND\r\nNOT_FOUND\r\nDELETED\r\nERROR\r\nVERSION " + wireVersion + "\r\n"

func TestCommandsSplitAnywhere(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		c.ask(story, storyReplies)
		for at := 1; at < len(story); at++ {
			c.send(story[:at])
			time.Sleep(200 * time.Microsecond) // two packets, most likely two reads
			c.ask(story[at:], storyReplies)
		}
		for i := range len(story) {
			c.send(story[i : i+1])
		}
		c.want(storyReplies)
	})
}

func TestMultigetOfAnyLength(t *testing.T) {
	const keys = 100_000
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		c.set("here", []byte("yes"))
		var line, reply bytes.Buffer
		line.WriteString("get")
		for i := range keys {
			if i%100 == 99 {
				line.WriteString(" here")
				reply.WriteString("VALUE here 0 3\r\nyes\r\n")
			} else {
				fmt.Fprintf(&line, " nothing-%d", i)
			}
		}
		line.WriteString("\r\nget here\r\n")
		reply.WriteString("END\r\nVALUE here 0 3\r\nyes\r\nEND\r\n")
		go c.Write(line.Bytes())
		c.want(reply.String())
	})
}

func TestQuietCommandsSayNothing(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		c.ask("set k 0 0 1 noreply\r\n5\r\n"+
			"add k 0 0 1 noreply\r\n6\r\n"+
			"incr k 1 noreply\r\n"+
			"incr k many noreply\r\n"+
			"delete none noreply\r\n"+
			"touch k 0 noreply\r\n"+
			"set big 0 0 3000000 noreply\r\n"+strings.Repeat("x", 3000000)+"\r\n"+
			"ms q 1 q\r\n1\r\n"+
			"mg none v q\r\n"+
			"md q q\r\n"+
			"mn\r\nget k q big\r\n",
			"MN\r\nVALUE k 0 1\r\n6\r\nEND\r\n")
		c.ask("verbosity 0 noreply\r\nflush_all 0 noreply\r\nget k\r\n", "END\r\n")
	})
}

func TestBadChunkAndBadKeyKeepTheStream(t *testing.T) {
	long := strings.Repeat("k", 251)
	eachDriver(t, func(t *testing.T, cfg Config) {
		c := dial(t, start(t, cfg))
		c.ask("set a 0 0 2\r\nok\r\nget a\r\nset b 0 0 2\r\nlonger\r\nget a b\r\n",
			"STORED\r\nVALUE a 0 2\r\nok\r\nEND\r\nCLIENT_ERROR bad data chunk\r\nERROR\r\nVALUE a 0 2\r\nok\r\nEND\r\n")
		// The error of a multiget replaces its own replies and no others.
		const bad = "CLIENT_ERROR bad command line format\r\n"
		c.ask("get a\r\nget a "+long+" a\r\nget a\r\n",
			"VALUE a 0 2\r\nok\r\nEND\r\n"+bad+"VALUE a 0 2\r\nok\r\nEND\r\n")
		c.ask("get a\r\ngat 0 a "+long+" a\r\ngat 0 a\r\n",
			"VALUE a 0 2\r\nok\r\nEND\r\n"+bad+"VALUE a 0 2\r\nok\r\nEND\r\n")
		c.ask("set "+long+" 0 0 5\r\nget a\r\nget a\r\n", bad+"VALUE a 0 2\r\nok\r\nEND\r\n")
	})
}

func TestQuitExecutesNothingAfterIt(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		c := dial(t, n)
		c.ask("set k 0 0 3\r\nold\r\nset j 0 0 1\r\n1\r\nquit\r\nset k 0 0 3\r\nnew\r\nincr j 1\r\n", "STORED\r\nSTORED\r\n")
		c.end()
		dial(t, n).ask("get k j\r\n", "VALUE k 0 3\r\nold\r\nVALUE j 0 1\r\n1\r\nEND\r\n")
	})
}

func TestHalfClosedGetsItsReplies(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		c := dial(t, n)
		value := pattern(300<<10, 1)
		c.set("big", value)
		var reply strings.Builder
		for range 20 {
			c.send("get big\r\n")
			fmt.Fprintf(&reply, "VALUE big 0 %d\r\n%s\r\nEND\r\n", len(value), value)
		}
		c.send("set half 0 0 10\r\nonly")
		c.Conn.(*net.TCPConn).CloseWrite()
		c.want(reply.String())
		c.end()
		attunetest.Eventually(t, "the connection is gone", func() bool { return n.curConns.Load() == 0 })
	})
}

func TestResetInTheMiddleLeavesNothing(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		other := dial(t, n)
		other.set("big", pattern(1<<20, 1))
		files := openFiles(t)
		if cfg.Backend != "embedded" {
			files += 30 // connections to the server, kept for others
		}
		for i := range 30 {
			c := dial(t, n)
			switch i % 3 {
			case 0: // in a large value
				c.send("set big 0 0 1000000\r\n" + strings.Repeat("x", 100_000))
			case 1: // with replies it does not read
				c.send(strings.Repeat("get big\r\n", 20))
				c.line()
			case 2: // in a line, and in a dump
				c.send("lru_crawler metadump all\r\nget a b")
			}
			c.Conn.(*net.TCPConn).SetLinger(0)
			c.Close()
		}
		attunetest.Eventually(t, "the connections are gone", func() bool { return n.curConns.Load() == 1 })
		attunetest.Eventually(t, "their descriptors are closed", func() bool { return openFiles(t) <= files })
		if got := other.get("big"); !bytes.Equal(got, pattern(1<<20, 1)) {
			t.Error("a value that was never sent whole was stored")
		}
	})
}

func TestEndlessLineIsCutOff(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		c := dial(t, n)
		c.send("version\r\n" + strings.Repeat("x", 2049))
		c.want("VERSION " + wireVersion + "\r\n")
		attunetest.Eventually(t, "the connection is gone", func() bool { return n.curConns.Load() == 0 })
	})
}

// TestRandomPipelines compares what one connection is told with a dumb model,
// whatever pieces its bytes come in.
func TestRandomPipelines(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		seed := uint64(time.Now().UnixNano())
		t.Log("seed", seed)
		rnd := rand.New(rand.NewPCG(seed, 1))
		c := dial(t, start(t, cfg))
		model := make(map[string]string)
		var ask, reply bytes.Buffer
		sizes := []int{0, 1, 100, 5000, 32<<10 - 1, 32 << 10, 32<<10 + 1, 100_000}
		for range 300 {
			key := fmt.Sprintf("k%d", rnd.IntN(10))
			switch rnd.IntN(6) {
			case 0, 1:
				model[key] = string(pattern(sizes[rnd.IntN(len(sizes))], rnd.IntN(1000)))
				fmt.Fprintf(&ask, "set %s 0 0 %d\r\n%s\r\n", key, len(model[key]), model[key])
				reply.WriteString("STORED\r\n")
			case 2:
				fmt.Fprintf(&ask, "get %s\r\n", key)
				if v, ok := model[key]; ok {
					fmt.Fprintf(&reply, "VALUE %s 0 %d\r\n%s\r\n", key, len(v), v)
				}
				reply.WriteString("END\r\n")
			case 3:
				fmt.Fprintf(&ask, "mg %s v\r\n", key)
				if v, ok := model[key]; ok {
					fmt.Fprintf(&reply, "VA %d\r\n%s\r\n", len(v), v)
				} else {
					reply.WriteString("EN\r\n")
				}
			case 4:
				fmt.Fprintf(&ask, "delete %s\r\n", key)
				if _, ok := model[key]; ok {
					reply.WriteString("DELETED\r\n")
				} else {
					reply.WriteString("NOT_FOUND\r\n")
				}
				delete(model, key)
			case 5:
				fmt.Fprintf(&ask, "prepend %s 0 0 3\r\npre\r\n", key)
				if v, ok := model[key]; ok {
					model[key] = "pre" + v
					reply.WriteString("STORED\r\n")
				} else {
					reply.WriteString("NOT_STORED\r\n")
				}
			}
		}
		go func(b []byte) {
			rnd := rand.New(rand.NewPCG(seed, 2))
			for len(b) > 0 {
				n := min(len(b), 1+rnd.IntN(1<<rnd.IntN(18)))
				if _, err := c.Write(b[:n]); err != nil {
					return
				}
				b = b[n:]
			}
		}(ask.Bytes())
		c.want(reply.String())
	})
}
