package bench

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"slices"
	"strings"
	"time"
)

// A target is one server or cluster under test and the connections to it.
type target struct {
	o       *Options
	name    string   // A or B
	server  string   // as the options name it
	addrs   []string // of server; connection i goes to number i modulo their count
	pids    PIDs     // none is unknown
	version string   // what the server calls itself; "" when it would not say
	driver  *driver
	dialect dialect
	fill    []byte // see filler
	streams []*stream
}

// newTarget checks that there is a server at every address, and opens the
// connections.
func newTarget(ctx context.Context, o *Options, name, server string, pids PIDs) (*target, error) {
	t := &target{o: o, name: name, server: server, addrs: addresses(server), pids: pids, driver: o.driver, fill: filler(o.Values.Max)}
	if t.driver == nil {
		t.driver = bestDriver
	}
	var err error
	if t.dialect, err = newDialect(o.Protocol); err != nil {
		return nil, err
	}
	if _, err := t.serverCPU(); err != nil {
		return nil, err
	}
	var versions []string
	for _, addr := range t.addrs {
		v, err := t.probe(ctx, addr)
		if err != nil {
			return nil, err
		}
		if v != "" && !slices.Contains(versions, v) {
			versions = append(versions, v) // more than one in the midst of an upgrade
		}
	}
	t.version = strings.Join(versions, ", ")
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

// serverCPU returns the CPU time that the target's processes have used together.
func (t *target) serverCPU() (sum time.Duration, err error) {
	for _, pid := range t.pids {
		used, err := serverCPU(pid)
		if err != nil {
			return 0, err
		}
		sum += used
	}
	return sum, nil
}

// probe asks for the version, which every memcache server tells, and which tells
// one from whatever else may listen there.
func (t *target) probe(ctx context.Context, addr string) (version string, err error) {
	c, err := t.dial(ctx, addr)
	if err != nil {
		return "", err
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
			return v, nil
		case err == nil:
			err = fmt.Errorf("%q", clip([]byte(line)))
		}
	}
	if t.o.Protocol == "binary" {
		return "", nil // it may speak nothing else
	}
	return "", fmt.Errorf("%s does not answer as a memcache server: %w", addr, err)
}

// connect opens the connections that are missing: all at first, later those that
// an earlier pass gave up.
func (t *target) connect(ctx context.Context) error {
	for _, s := range t.streams {
		if s.link != nil {
			continue
		}
		c, err := t.dial(ctx, t.addrs[s.id%len(t.addrs)])
		if err != nil {
			return fmt.Errorf("connection %d: %w", s.id, err)
		}
		if s.link, err = t.driver.attach(c); err != nil {
			return fmt.Errorf("connection %d: %w", s.id, err)
		}
	}
	return nil
}

func (t *target) dial(ctx context.Context, addr string) (net.Conn, error) {
	d := net.Dialer{Timeout: t.o.Timeout}
	netw, address := network(addr)
	return d.DialContext(ctx, netw, address)
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
		return fmt.Errorf("prefill of %s: %d of %d keys were not stored: %s", t.server, bad, t.o.Keys, got.firstErr)
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
	server, err := t.serverCPU()
	if err != nil {
		return nil, err
	}
	own := ownCPU()
	m := &Measure{outcome: *t.run(ctx, newPass(t.o, stage, t.o.Duration, t.o.Ops))}
	m.own = ownCPU() - own
	after, err := t.serverCPU()
	m.server = after - server
	m.hasServer = len(t.pids) > 0 && err == nil // without, the rest of the round counts
	m.summarize()
	return m, err
}
