package controller

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// together runs do on clients of their own, all at once.
func together(t *testing.T, n *Node, clients int, do func(i int, c *client)) {
	t.Helper()
	var wg sync.WaitGroup
	begin := make(chan struct{})
	for i := range clients {
		c := dial(t, n)
		wg.Go(func() {
			<-begin
			do(i, c)
		})
	}
	close(begin)
	wg.Wait()
}

// reply reads a line where a test may not be ended: on another goroutine.
func (c *client) reply() string {
	s, err := c.r.ReadString('\n')
	if err != nil {
		c.t.Error(err)
	}
	return strings.TrimSuffix(s, "\r\n")
}

func (c *client) tell(format string, args ...any) {
	if _, err := fmt.Fprintf(c.Conn, format, args...); err != nil {
		c.t.Error(err)
	}
}

func TestEveryIncrementCounts(t *testing.T) {
	const clients, each = 20, 200
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		dial(t, n).set("n", []byte("0"))
		results := make([][]uint64, clients)
		together(t, n, clients, func(i int, c *client) {
			for done := 0; done < each; done += 10 {
				c.tell("%s", strings.Repeat("incr n 1\r\n", 10)) // pipelined: in order
				for range 10 {
					v, err := strconv.ParseUint(c.reply(), 10, 64)
					if err != nil {
						c.t.Error(err)
						return
					}
					results[i] = append(results[i], v)
				}
			}
		})
		seen := make(map[uint64]bool)
		for i, list := range results {
			last := uint64(0)
			for _, v := range list {
				if seen[v] || v <= last || v > clients*each {
					t.Fatalf("client %d was told %d after %d (by somebody already: %v)", i, v, last, seen[v])
				}
				seen[v], last = true, v
			}
		}
		if got := dial(t, n).get("n"); string(got) != fmt.Sprint(clients*each) {
			t.Errorf("n is %s, want %d", got, clients*each)
		}
	})
}

func TestCompareAndSwapLosesNothing(t *testing.T) {
	const clients, each = 10, 30
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		dial(t, n).set("n", []byte("0"))
		together(t, n, clients, func(_ int, c *client) {
			for range each {
				for swapped := false; !swapped; {
					c.tell("gets n\r\n")
					head := strings.Fields(c.reply())
					v, err := strconv.Atoi(c.reply())
					if c.reply() != "END" || err != nil || len(head) != 5 {
						c.t.Errorf("gets: %v %v", head, err)
						return
					}
					next := strconv.Itoa(v + 1)
					c.tell("cas n 0 0 %d %s\r\n%s\r\n", len(next), head[4], next)
					switch got := c.reply(); got {
					case "STORED":
						swapped = true
					case "EXISTS":
					default:
						c.t.Errorf("cas: %s", got)
						return
					}
				}
			}
		})
		if got := dial(t, n).get("n"); string(got) != fmt.Sprint(clients*each) {
			t.Errorf("n is %s, want %d", got, clients*each)
		}
	})
}

func TestEveryAppendIsKept(t *testing.T) {
	const clients, each = 10, 100
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		dial(t, n).set("log", nil)
		together(t, n, clients, func(i int, c *client) {
			for j := range each {
				word := fmt.Sprintf("%d.%d,", i, j)
				verb := []string{"append", "prepend"}[i%2]
				if c.tell("%s log 0 0 %d\r\n%s\r\n", verb, len(word), word); c.reply() != "STORED" {
					c.t.Error("not stored")
				}
			}
		})
		words := strings.Split(strings.TrimSuffix(string(dial(t, n).get("log")), ","), ",")
		last := make(map[string]int)
		for at, w := range words {
			client, number, _ := strings.Cut(w, ".")
			i, _ := strconv.Atoi(client)
			j, err := strconv.Atoi(number)
			if i%2 == 1 {
				j = each - 1 - j // prepended: the newest stands first
			}
			if err != nil || j != last[client] {
				t.Fatalf("word %d is %q, out of its writer's order", at, w)
			}
			last[client]++
		}
		if len(words) != clients*each {
			t.Errorf("%d words, want %d", len(words), clients*each)
		}
	})
}

// TestOneWinnerPerLease: of many clients that miss together, one is told to
// fill the item; likewise when it was invalidated.
func TestOneWinnerPerLease(t *testing.T) {
	const clients = 50
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		race := func(what, ask string) {
			t.Helper()
			var mu sync.Mutex
			won, taken := 0, 0
			together(t, n, clients, func(_ int, c *client) {
				c.tell("%s", ask)
				flags := strings.Fields(c.reply())[1:]
				mu.Lock()
				defer mu.Unlock()
				for _, f := range flags {
					switch f {
					case "W":
						won++
					case "Z":
						taken++
					}
				}
			})
			if won != 1 || taken != clients-1 {
				t.Errorf("%s: %d clients won and %d were told so, of %d", what, won, taken, clients)
			}
		}
		for i := range 5 {
			key := fmt.Sprint("k", i)
			race("missing", "mg "+key+" s N30\r\n")
			c := dial(t, n)
			c.ask("ms "+key+" 3 T300\r\nnew\r\nmd "+key+" I T30\r\n", "HD\r\nHD\r\n")
			race("stale", "mg "+key+" s N30\r\n")
		}
	})
}

// TestReadersSeeWholeValues: a value being overwritten is read as one of those
// written, never as parts of two, whatever its size.
func TestReadersSeeWholeValues(t *testing.T) {
	eachDriver(t, func(t *testing.T, cfg Config) {
		n := start(t, cfg)
		for _, size := range []int{100, 10_000, 40_000, 200_000} {
			first := dial(t, n)
			first.set("k", make([]byte, size))
			together(t, n, 6, func(i int, c *client) {
				value := strings.Repeat(string(rune('a'+i)), size)
				buf := make([]byte, size)
				for range 15 {
					if i < 2 {
						if c.tell("set k 0 0 %d\r\n%s\r\n", size, value); c.reply() != "STORED" {
							c.t.Error("not stored")
						}
						continue
					}
					c.tell("get k\r\n")
					if head := c.reply(); head != fmt.Sprintf("VALUE k 0 %d", size) {
						c.t.Errorf("get: %q", head)
						return
					}
					if _, err := io.ReadFull(c.r, buf); err != nil || c.reply() != "" || c.reply() != "END" {
						c.t.Errorf("get: %v", err)
						return
					}
					for at, b := range buf {
						if b != buf[0] {
							c.t.Errorf("value of %q until byte %d, then %q", buf[0], at, b)
							return
						}
					}
				}
			})
		}
	})
}
