package controller_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/attunekv/attune/controller"
	"github.com/attunekv/attune/internal/attunetest"
)

// startNode serves an attune of default settings, but for what change says, on
// a free loopback port until the test ends.
func startNode(t testing.TB, change func(*controller.Config)) (addr string) {
	t.Helper()
	cfg := controller.Default()
	cfg.Listen, cfg.Admin = []string{"127.0.0.1:0"}, ""
	cfg.MemoryLimit = 64 << 20
	if change != nil {
		change(&cfg)
	}
	n, err := controller.Open(context.Background(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := n.Close(ctx); err != nil {
			t.Errorf("close: %v", err)
		}
	})
	return n.Addrs()[0]
}

// startMemcached serves a real memcached on a free loopback port until the test
// ends.
func startMemcached(t testing.TB) (addr string) {
	t.Helper()
	return attunetest.StartMemcached(t, "-t", "1", "-m", "64").Addr
}

// isOld reports whether a memcached is older than the release whose protocol
// attune speaks. One built from a checkout does not know its number and is new.
func isOld(t testing.TB, addr string) bool {
	t.Helper()
	reply, err := talk(addr, [][]byte{[]byte("version\r\n")}, 0)
	if err != nil {
		t.Fatal(err)
	}
	release := strings.TrimSpace(strings.TrimPrefix(string(reply), "VERSION "))
	var major, minor, patch int
	if n, _ := fmt.Sscanf(release, "%d.%d.%d", &major, &minor, &patch); n != 3 {
		return false
	}
	return major*1_000_000+minor*1000+patch < 1_006_045
}

// talk sends pieces over a connection of its own, says that no more will come,
// and returns all replies up to the server's close. With a pause between the
// pieces the server gets them one by one, else as one stream.
func talk(addr string, pieces [][]byte, pause time.Duration) ([]byte, error) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		return nil, err
	}
	c := conn.(*net.TCPConn)
	defer c.Close()
	c.SetDeadline(time.Now().Add(10*time.Second + pause*time.Duration(len(pieces))))
	sent := make(chan struct{})
	go func() {
		defer close(sent)
		defer c.CloseWrite()
		if pause == 0 {
			c.Write(bytes.Join(pieces, nil)) // it may have closed: the replies tell
			return
		}
		for i, piece := range pieces {
			if i > 0 {
				time.Sleep(pause)
			}
			if _, err := c.Write(piece); err != nil {
				return
			}
		}
	}()
	var reply bytes.Buffer
	_, err = io.Copy(&reply, c)
	<-sent
	var timeout net.Error
	if errors.As(err, &timeout) && timeout.Timeout() {
		return reply.Bytes(), fmt.Errorf("%s does not close after half-close; replied %q", addr, clip(reply.Bytes()))
	}
	return reply.Bytes(), nil // a reset is a close with commands unread
}

// casOf is the unique a key has at a server, and one that none has if there is
// no item.
func casOf(addr, key string) (uint64, error) {
	reply, err := talk(addr, [][]byte{[]byte("gets " + key + "\r\n")}, 0)
	if err != nil {
		return 0, err
	}
	line, _, _ := strings.Cut(string(reply), "\r\n")
	if w := strings.Fields(line); len(w) == 5 && w[0] == "VALUE" {
		return strconv.ParseUint(w[4], 10, 64)
	}
	return 999_999_999_999, nil
}

// casMark stands for the unique of the key k in a command: eight bytes, as long
// as the field of a binary packet.
func casMark(k byte) string { return "@CAS#" + string(k) + "#@" }

// resolve puts the uniques that keys have at a server in place of their marks.
func resolve(addr string, batch [][]byte) ([][]byte, error) {
	known := map[byte]uint64{}
	out := make([][]byte, len(batch))
	for i, piece := range batch {
		for {
			at := bytes.Index(piece, []byte("@CAS#"))
			if at < 0 || at+8 > len(piece) {
				break
			}
			k := piece[at+5]
			if _, ok := known[k]; !ok {
				v, err := casOf(addr, string(k))
				if err != nil {
					return nil, err
				}
				known[k] = v
			}
			field := strconv.AppendUint(nil, known[k], 10)
			if piece[0] == 0x80 {
				field = binary.BigEndian.AppendUint64(nil, known[k])
			}
			piece = bytes.Join([][]byte{piece[:at], field, piece[at+8:]}, nil)
		}
		out[i] = piece
	}
	return out, nil
}

// clip shortens what a failure shows.
func clip(b []byte) []byte {
	const most = 1500
	if len(b) <= most {
		return b
	}
	return append(bytes.Clone(b[:most]), "..."...)
}
