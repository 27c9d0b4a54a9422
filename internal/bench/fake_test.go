package bench

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// A fake is a memcache server that knows what this package sends, and can
// misbehave.
type fake struct {
	addr string

	// answer, if set, may reply to the n-th request (from 1, over all
	// connections) itself: "" is the ordinary reply, silent none at all, hangup a
	// closed connection.
	answer func(n int64, verb string) string

	gets, sets, incrs, conns atomic.Int64
	requests                 atomic.Int64

	mu     sync.Mutex // guards what follows
	items  map[string][]byte
	open   map[net.Conn]bool
	closed bool
}

const (
	silent = "silent"
	hangup = "hangup"
)

func newFake(t *testing.T, answer func(int64, string) string) *fake {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{addr: l.Addr().String(), answer: answer, items: map[string][]byte{}, open: map[net.Conn]bool{}}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			f.mu.Lock()
			if f.closed {
				c.Close()
			}
			f.open[c] = true
			f.mu.Unlock()
			f.conns.Add(1)
			all.Go(func() { f.serve(c) })
		}
	})
	t.Cleanup(func() {
		l.Close()
		f.mu.Lock()
		f.closed = true
		for c := range f.open {
			c.Close()
		}
		f.mu.Unlock()
		all.Wait()
	})
	return f
}

func (f *fake) serve(c net.Conn) {
	defer func() {
		c.Close()
		f.mu.Lock()
		delete(f.open, c)
		f.mu.Unlock()
	}()
	r, w := bufio.NewReaderSize(c, 64<<10), bufio.NewWriterSize(c, 64<<10)
	first, err := r.Peek(1)
	if err != nil {
		return
	}
	one := f.text
	if first[0] == binRequest {
		one = f.binary
	}
	for {
		if err := one(r, w); err != nil {
			return
		}
		if r.Buffered() == 0 && w.Flush() != nil {
			return
		}
	}
}

var errHangup = errors.New("hangup")

// act carries one get, set or incr out, or does as answer says. ok is whether the
// ordinary reply is due.
func (f *fake) act(w *bufio.Writer, verb, key string, value []byte) (got []byte, found, ok bool, err error) {
	n := f.requests.Add(1)
	f.mu.Lock()
	switch verb {
	case "set":
		f.sets.Add(1)
		f.items[key] = value
	case "incr":
		f.incrs.Add(1)
		if got, found = f.items[key]; found {
			n, err := strconv.ParseUint(string(got), 10, 64)
			if err != nil {
				f.mu.Unlock()
				return nil, false, false, err
			}
			got = strconv.AppendUint(nil, n+1, 10)
			f.items[key] = got
		}
	default:
		f.gets.Add(1)
		got, found = f.items[key]
	}
	f.mu.Unlock()
	if f.answer != nil {
		switch s := f.answer(n, verb); s {
		case "":
		case silent:
			return nil, false, false, nil
		case hangup:
			return nil, false, false, errHangup
		default:
			_, err = w.WriteString(s)
			return nil, false, false, err
		}
	}
	return got, found, true, nil
}

func (f *fake) text(r *bufio.Reader, w *bufio.Writer) error {
	line, err := r.ReadString('\n')
	if err != nil {
		return err
	}
	word := strings.Fields(line)
	switch word[0] {
	case "version":
		_, err = w.WriteString("VERSION 1.2.3\r\n")
	case "get", "mg":
		v, found, ok, err := f.act(w, "get", word[1], nil)
		switch {
		case err != nil || !ok:
			return err
		case word[0] == "get" && found:
			fmt.Fprintf(w, "VALUE %s 0 %d\r\n%s\r\nEND\r\n", word[1], len(v), v)
		case word[0] == "get":
			w.WriteString("END\r\n")
		case found:
			fmt.Fprintf(w, "VA %d\r\n%s\r\n", len(v), v)
		default:
			w.WriteString("EN\r\n")
		}
	case "incr", "ma":
		v, found, ok, err := f.act(w, "incr", word[1], nil)
		switch {
		case err != nil || !ok:
			return err
		case word[0] == "incr" && found:
			fmt.Fprintf(w, "%s\r\n", v)
		case word[0] == "incr":
			w.WriteString("NOT_FOUND\r\n")
		case found:
			fmt.Fprintf(w, "VA %d\r\n%s\r\n", len(v), v)
		default:
			w.WriteString("NF\r\n")
		}
	case "set", "ms":
		size, err := strconv.Atoi(word[len(word)-1])
		if err != nil {
			return err
		}
		v := make([]byte, size+2)
		if _, err := io.ReadFull(r, v); err != nil {
			return err
		}
		if _, _, ok, err := f.act(w, "set", word[1], v[:size]); err != nil || !ok {
			return err
		}
		w.WriteString(map[string]string{"set": "STORED\r\n", "ms": "HD\r\n"}[word[0]])
	default:
		_, err = w.WriteString("ERROR\r\n")
	}
	return err
}

func (f *fake) binary(r *bufio.Reader, w *bufio.Writer) error {
	head := make([]byte, binHeader)
	if _, err := io.ReadFull(r, head); err != nil {
		return err
	}
	body := make([]byte, binary.BigEndian.Uint32(head[8:]))
	if _, err := io.ReadFull(r, body); err != nil {
		return err
	}
	extras, keyLen := int(head[4]), int(binary.BigEndian.Uint16(head[2:]))
	key, value := string(body[extras:extras+keyLen]), body[extras+keyLen:]
	verb := "get"
	switch head[1] {
	case binSet:
		verb = "set"
	case binIncr:
		verb = "incr"
	}
	v, found, ok, err := f.act(w, verb, key, value)
	if err != nil || !ok {
		return err
	}
	reply := make([]byte, binHeader, binHeader+4+len(v))
	reply[0], reply[1] = binReply, head[1]
	copy(reply[12:16], head[12:16])
	switch {
	case verb == "set":
	case verb == "incr" && found:
		n, err := strconv.ParseUint(string(v), 10, 64)
		if err != nil {
			return err
		}
		reply = binary.BigEndian.AppendUint64(reply, n)
	case found:
		reply[4] = 4
		reply = append(append(reply, 0, 0, 0, 0), v...)
	default:
		reply[7] = binNotFound
		reply = append(reply, "Not found"...)
	}
	binary.BigEndian.PutUint32(reply[8:], uint32(len(reply)-binHeader))
	_, err = w.Write(reply)
	return err
}

// small is a quick load on addr.
func small(addr string) Options {
	o := Defaults()
	o.Server = addr
	o.Conns, o.Threads, o.Keys = 7, 2, 200
	o.Warmup, o.Duration, o.Ops = 0, 0, 1000
	o.Timeout = 5 * time.Second
	return o
}

// drivers are all that run here.
var drivers = map[string]*driver{"best": bestDriver, "net": netDriver}
