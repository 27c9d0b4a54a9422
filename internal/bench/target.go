package bench

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"time"
)

// A target is one server under test and the connections to it.
type target struct {
	o       *Options
	name    string // A or B
	addr    string
	pid     int    // 0 is unknown
	version string // what the server calls itself; "" when it would not say
	driver  *driver
	dialect dialect
	fill    []byte // see filler
	streams []*stream
}

// newTarget checks that there is a server, and opens the connections.
func newTarget(ctx context.Context, o *Options, name, addr string, pid int) (*target, error) {
	t := &target{o: o, name: name, addr: addr, pid: pid, driver: o.driver, fill: filler(o.Values.Max)}
	if t.driver == nil {
		t.driver = bestDriver
	}
	var err error
	if t.dialect, err = newDialect(o.Protocol); err != nil {
		return nil, err
	}
	if pid != 0 {
		if _, err := serverCPU(pid); err != nil {
			return nil, err
		}
	}
	if err := t.probe(ctx); err != nil {
		return nil, err
	}
	var z *zipf
	if o.Dist == "zipf" {
		z = newZipf(o.Keys, o.ZipfS)
	}
	for i := range o.Conns {
		t.streams = append(t.streams, &stream{id: i, t: t, mix: newMix(o, z, i)})
	}
	if err := t.connect(ctx); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// probe asks for the version, which every memcache server tells, and which tells
// one from whatever else may listen there.
func (t *target) probe(ctx context.Context) error {
	c, err := t.dial(ctx)
	if err != nil {
		return err
	}
	defer c.Close()
	// Cannot fail on a fresh connection in a way that the read below would not show.
	_ = c.SetDeadline(time.Now().Add(min(t.o.Timeout, 3*time.Second)))
	if _, err = c.Write([]byte("version\r\n")); err == nil {
		var line string
		line, err = bufio.NewReaderSize(c, maxLine).ReadString('\n')
		v, ok := strings.CutPrefix(strings.TrimSpace(line), "VERSION ")
		switch {
		case ok:
			t.version = v
			return nil
		case err == nil:
			err = fmt.Errorf("%q", clip([]byte(line)))
		}
	}
	if t.o.Protocol == "binary" {
		return nil // it may speak nothing else
	}
	return fmt.Errorf("%s does not answer as a memcache server: %w", t.addr, err)
}

// connect opens the connections that are missing: all at first, later those that
// an earlier pass gave up.
func (t *target) connect(ctx context.Context) error {
	for _, s := range t.streams {
		if s.link != nil {
			continue
		}
		c, err := t.dial(ctx)
		if err != nil {
			return fmt.Errorf("connection %d: %w", s.id, err)
		}
		if s.link, err = t.driver.attach(c); err != nil {
			return fmt.Errorf("connection %d: %w", s.id, err)
		}
	}
	return nil
}

func (t *target) dial(ctx context.Context) (net.Conn, error) {
	d := net.Dialer{Timeout: t.o.Timeout}
	netw, addr := network(t.addr)
	return d.DialContext(ctx, netw, addr)
}

func (t *target) close() {
	for _, s := range t.streams {
		if s.link != nil {
			s.link.close()
			s.link = nil
		}
	}
}

// prefillDepth is how deep the prefill pipelines at least; nobody measures it.
const prefillDepth = 16

// prefill sets every key once.
func (t *target) prefill(ctx context.Context) error {
	p := newPass(t.o, "prefill "+t.name, 0, 0)
	p.prefill, p.interval, p.limit, p.depth = true, 0, t.o.Keys, max(t.o.Pipeline, prefillDepth)
	got := t.run(ctx, p)
	if bad := t.o.Keys - got.stored; bad > 0 && ctx.Err() == nil {
		return fmt.Errorf("prefill of %s: %d of %d keys were not stored: %s", t.addr, bad, t.o.Keys, got.firstErr)
	}
	return nil
}

// warm runs the load without keeping what it measures.
func (t *target) warm(ctx context.Context, stage string) error {
	if err := t.connect(ctx); err != nil {
		return err
	}
	t.run(ctx, newPass(t.o, stage, t.o.Warmup, 0))
	return nil
}

// measure runs one round.
func (t *target) measure(ctx context.Context, stage string) (*Measure, error) {
	if err := t.connect(ctx); err != nil {
		return nil, err
	}
	var err error
	var server time.Duration
	if t.pid != 0 {
		if server, err = serverCPU(t.pid); err != nil {
			return nil, err
		}
	}
	own := ownCPU()
	m := &Measure{outcome: *t.run(ctx, newPass(t.o, stage, t.o.Duration, t.o.Ops)), hasServer: t.pid != 0}
	m.own = ownCPU() - own
	if t.pid != 0 {
		after, e := serverCPU(t.pid)
		if e != nil {
			m.hasServer, err = false, e // keep the rest of the round
		}
		m.server = after - server
	}
	m.summarize()
	return m, err
}
