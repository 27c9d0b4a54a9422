package shell

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/attunekv/attune/client"
)

// traced is what /trace answers, as far as it is shown.
type traced struct {
	Controller, Level, Reply string
	Steps                    []struct {
		At   int64 `json:"at_us"`
		Step string
	}
	Lacks   string `json:"not_measured"`
	TraceID string `json:"trace_id"`
}

// trace runs a command by way of /trace, and shows the steps it took behind what it
// prints.
func (sh *shell) trace(in input) error {
	if cmd, ok := lookup(in.args[0].text); !ok || cmd.local {
		return usageError(fmt.Sprintf("%s cannot be traced: a command of memcache can", clean(in.args[0].text)))
	}
	at, err := sh.admin()
	if err != nil {
		return err
	}
	var results []traced
	var raws []json.RawMessage
	inner := &shell{raw: in.raw, ctx: sh.ctx, stdin: sh.stdin, out: sh.out, err: sh.err, colourOut: sh.colourOut}
	if in.json {
		inner.out = bufio.NewWriter(io.Discard)
	}
	inner.client = client.New(sh.client.Controller())
	inner.client.Timeout = adminPatience
	inner.client.DialContext = func(context.Context, string, string) (net.Conn, error) {
		return &traceConn{post: func(request []byte) (reply []byte, err error) {
			ctx, cancel := sh.patient()
			defer cancel()
			var t traced
			raw, err := at.Post(ctx, "/trace", request, &t)
			if err == nil {
				raws, results = append(raws, raw), append(results, t)
			}
			return []byte(t.Reply), err
		}}, nil
	}
	err = inner.runWords(in.args)
	inner.client.Close()
	if in.json {
		for _, raw := range raws {
			sh.out.Write(raw)
		}
		return err
	}
	for _, t := range results {
		fmt.Fprintf(sh.out, "\ntraced at %s, level %s\n", clean(t.Controller), clean(t.Level))
		rows := [][]string{{"US", "TOOK", "STEP"}}
		last := int64(0)
		for _, step := range t.Steps {
			rows = append(rows, []string{fmt.Sprint(step.At), fmt.Sprint(step.At - last), step.Step})
			last = step.At
		}
		sh.table(rows)
		if t.Lacks != "" {
			fmt.Fprintf(sh.out, "not measured: %s\n", clean(t.Lacks))
		}
		if t.TraceID != "" {
			fmt.Fprintf(sh.out, "at the collector, this is trace %s\n", clean(t.TraceID))
		}
	}
	return err
}

// traceConn is a connection to a memcache server whose requests go by another way: what
// was written is posted when somebody wants to read.
type traceConn struct {
	post     func(request []byte) (reply []byte, err error)
	out, in  bytes.Buffer
	net.Conn // nil: nobody calls the rest
}

func (c *traceConn) Write(b []byte) (int, error) { return c.out.Write(b) }

func (c *traceConn) Read(b []byte) (int, error) {
	if c.in.Len() == 0 && c.out.Len() > 0 {
		request := bytes.Clone(c.out.Bytes())
		c.out.Reset()
		reply, err := c.post(request)
		if err != nil {
			return 0, err
		}
		c.in.Write(reply)
	}
	return c.in.Read(b)
}

func (c *traceConn) Close() error                     { return nil }
func (c *traceConn) LocalAddr() net.Addr              { return traceAddr{} }
func (c *traceConn) RemoteAddr() net.Addr             { return traceAddr{} }
func (c *traceConn) SetDeadline(time.Time) error      { return nil }
func (c *traceConn) SetReadDeadline(time.Time) error  { return nil }
func (c *traceConn) SetWriteDeadline(time.Time) error { return nil }

type traceAddr struct{}

func (traceAddr) Network() string { return "trace" }
func (traceAddr) String() string  { return "trace" }
