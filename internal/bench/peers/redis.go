package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"strings"
	"time"
)

// redis is a primary with replicas. A caller is a connection.
type redis struct {
	o     *options
	conns []*redisConn
	name  string
	value string
}

func openRedis(ctx context.Context, o *options) (*redis, error) {
	r := &redis{o: o, value: strings.Repeat("x", o.value)}
	d := net.Dialer{Timeout: o.timeout}
	for range o.conns {
		c, err := d.DialContext(ctx, "tcp", o.servers[0])
		if err != nil {
			r.close()
			return nil, err
		}
		r.conns = append(r.conns, &redisConn{Conn: c, in: bufio.NewReaderSize(c, 16<<10)})
	}
	if err := r.probe(); err != nil {
		r.close()
		return nil, fmt.Errorf("%s: %w", o.servers[0], err)
	}
	return r, nil
}

// probe asks for the version, and makes sure of a replica: without one the first
// WAIT would last forever.
func (r *redis) probe() error {
	c := r.conns[0]
	c.out = appendCommand(c.out[:0], "INFO", "server")
	c.out = appendCommand(c.out, "SET", "bench:probe", "1")
	c.out = appendCommand(c.out, "WAIT", "1", strconv.FormatInt(max(r.o.timeout.Milliseconds()/2, 1), 10))
	if err := c.send(r.o.timeout); err != nil {
		return err
	}
	info, err := readReply(c.in)
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(info.bulk)) {
		if v, ok := strings.CutPrefix(strings.TrimSpace(line), "redis_version:"); ok {
			r.name = v
		}
	}
	if _, err := readReply(c.in); err != nil {
		return err
	}
	return c.waited()
}

func (r *redis) version() string { return r.name }

func (r *redis) callers() int { return r.o.conns }

func (r *redis) kinds() []string { return []string{"set", "get"} }

func (r *redis) call(_ context.Context, kind string, caller int, keys []string, record func(time.Time)) error {
	c := r.conns[caller]
	c.out = c.out[:0]
	for _, key := range keys {
		if kind == "set" {
			c.out = appendCommand(c.out, "SET", key, r.value)
		} else {
			c.out = appendCommand(c.out, "GET", key)
		}
	}
	if kind == "set" {
		c.out = appendCommand(c.out, "WAIT", "1", "0")
	}
	if err := c.send(r.o.timeout); err != nil {
		return err
	}
	for range keys {
		a, err := readReply(c.in)
		if err != nil {
			return err
		}
		if kind == "get" {
			if len(a.bulk) != len(r.value) {
				return errors.New("GET: the value is not the one stored")
			}
			record(time.Now())
		} else if a.line != "OK" {
			return fmt.Errorf("SET: %q", a.line)
		}
	}
	if kind == "get" {
		return nil
	}
	if err := c.waited(); err != nil {
		return err
	}
	now := time.Now() // only now any of them is what was asked for
	for range keys {
		record(now)
	}
	return nil
}

func (r *redis) close() {
	for _, c := range r.conns {
		c.Close()
	}
}

type redisConn struct {
	net.Conn
	in  *bufio.Reader
	out []byte
}

// send writes what out holds, and allows the timeout for it and its replies.
func (c *redisConn) send(timeout time.Duration) error {
	if err := c.SetDeadline(time.Now().Add(timeout)); err != nil {
		return err
	}
	_, err := c.Write(c.out)
	return err
}

// waited reads the reply to a WAIT for one replica.
func (c *redisConn) waited() error {
	a, err := readReply(c.in)
	if err == nil && a.number < 1 {
		err = errors.New("WAIT 1: no replica has the write")
	}
	return err
}

func appendCommand(out []byte, words ...string) []byte {
	out = append(out, '*')
	out = strconv.AppendInt(out, int64(len(words)), 10)
	out = append(out, "\r\n"...)
	for _, w := range words {
		out = append(out, '$')
		out = strconv.AppendInt(out, int64(len(w)), 10)
		out = append(out, "\r\n"...)
		out = append(out, w...)
		out = append(out, "\r\n"...)
	}
	return out
}

// maxBulk bounds what a reply may announce: a length gone wrong must not eat the
// memory. INFO is longer than the smallest values.
const maxBulk = maxValue + 64<<10

// A reply is one of: a line, a number, a bulk string, nil if there is none.
type reply struct {
	line   string
	number int64
	bulk   []byte
}

// readReply reads a reply other than an array. What the server calls an error is
// one here.
func readReply(in *bufio.Reader) (reply, error) {
	line, err := in.ReadSlice('\n')
	if err != nil {
		return reply{}, err
	}
	if len(line) < 3 || line[len(line)-2] != '\r' {
		return reply{}, fmt.Errorf("not a redis reply: %q", line)
	}
	kind, text := line[0], string(line[1:len(line)-2])
	switch kind {
	case '+':
		return reply{line: text}, nil
	case '-':
		return reply{}, errors.New(text)
	case ':', '$':
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil {
			return reply{}, fmt.Errorf("not a redis reply: %q", line)
		}
		if kind == ':' {
			return reply{number: n}, nil
		}
		if n == -1 {
			return reply{}, nil
		}
		if n < 0 || n > maxBulk {
			return reply{}, fmt.Errorf("a bulk string of %d bytes", n)
		}
		b := make([]byte, n+2)
		if _, err := io.ReadFull(in, b); err != nil {
			return reply{}, err
		}
		if string(b[n:]) != "\r\n" {
			return reply{}, fmt.Errorf("a bulk string of %d bytes is followed by %q", n, b[n:])
		}
		return reply{bulk: b[:n]}, nil
	}
	return reply{}, fmt.Errorf("not a redis reply: %q", line)
}
