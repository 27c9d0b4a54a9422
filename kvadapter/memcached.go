package kvadapter

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"net"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/attunekv/attune"
)

const (
	// memcachedTimeout is the timeout of a URL that names none.
	memcachedTimeout = 500 * time.Millisecond
	// memcachedMaxIdle is the max_idle of a URL that names none.
	memcachedMaxIdle = 64
	// memcachedBatch is the most keys of one request. memcached reads a whole
	// request before it answers, so the line should stay within its buffers.
	memcachedBatch = 100
)

// memcached keeps records in one or many memcached servers. A key lives on the
// server that gomemcache's own ServerList would pick (crc32 modulo the number of
// servers, in the order of the URL), so other tools find records where they
// expect them.
//
// Each server has a gomemcache client to itself, and beside it a connection for what
// is put and deleted (memcachedPipe); what callers want of a server together goes
// together. So an error
// names its server, dead connections are dropped for the server that died alone, and
// no lock is shared between a server that hangs and one that works.
//
// A call takes as long as its server does, at most the timeout (once more if it
// first waits for a connection). A context that ends is noticed before a call is
// sent, not in mid-call: gomemcache knows none, and a batch has many.
//
// A server that fails some calls in a row is down: calls fail at once, until it
// answers a probe (memcachedHealth).
//
// A Put or Delete that timed out may still happen, even after later ones: a
// server that was stopped reads what its kernel took meanwhile. Then the newest
// record is lost, which the stamp tells: a miss, never an old value. What did not
// reach the server's kernel never will (see memcachedConn.judge).
//
// memcached limits the size of an item, key and its own header included, to 1 MiB
// unless started with -I: a Put beyond it is ErrTooLarge, and memcached then drops
// the record put before. Takes tells it before (memcachedLimit). Records never expire there; when memory is short,
// memcached forgets those least used, which a later Get finds as ErrNotFound.
type memcached struct {
	fleet atomic.Pointer[memcachedFleet]

	mu    sync.Mutex // held while fleet is replaced; guards watch
	watch func(addr string, why error)
}

// memcachedFleet is the servers of a URL. It never changes.
type memcachedFleet struct {
	slots   []*memcachedServer // by crc32 of the stored key; a server may have many
	servers []*memcachedServer // each once
}

var (
	_ Backend     = (*memcached)(nil)
	_ Batcher     = (*memcached)(nil)
	_ BatchWriter = (*memcached)(nil)
	_ Scanner     = (*memcached)(nil)
	_ Lister      = (*memcached)(nil)
	_ Counter     = (*memcached)(nil)
	_ Statter     = (*memcached)(nil)
	_ Fleet       = (*memcached)(nil)
)

const memcachedScheme = "memcached://"

// newMemcached makes the backend of a URL
//
//	memcached://host:port[,host:port...][?timeout=500ms&max_idle=64]
//	memcached:///path/to/socket[,/path/to/socket...]
//
// A server listed twice gets twice the keys. timeout bounds one request, from
// dial to answer, for each MiB that it moves; max_idle is the connections kept
// to a server and the most in use at once, but for three by which single records
// go. Nothing is dialled and no name is
// looked up until a call needs it, and every dial looks the name up again: a
// server may come late, and may move.
func newMemcached(spec string) (Backend, error) {
	m := new(memcached)
	if err := m.Reconfigure(spec); err != nil {
		return nil, err
	}
	return m, nil
}

// Reconfigure implements Fleet. A server that is in both lists, with the same
// options, keeps its connections and figures.
func (m *memcached) Reconfigure(spec string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	old := m.fleet.Load()
	if old == nil {
		old = new(memcachedFleet)
	}
	fleet, err := newMemcachedFleet(spec, old)
	if err != nil {
		return err
	}
	for _, s := range fleet.servers {
		if !slices.Contains(old.servers, s) {
			m.watchServer(s)
		}
	}
	m.fleet.Store(fleet)
	for _, s := range old.servers {
		if !slices.Contains(fleet.servers, s) {
			s.close()
		}
	}
	return nil
}

// newMemcachedFleet takes from old what stays.
func newMemcachedFleet(spec string, old *memcachedFleet) (*memcachedFleet, error) {
	rest, ok := strings.CutPrefix(spec, memcachedScheme)
	if !ok {
		return nil, fmt.Errorf("backend %q: want memcached://host:port[,host:port...]; another kind of backend takes a restart", spec)
	}
	u, err := parseServers(rest)
	if err != nil {
		return nil, fmt.Errorf("backend %q: %w", spec, err)
	}
	timeout, maxIdle, err := memcachedOptions(u)
	if err != nil {
		return nil, err
	}
	list := u.Host + u.Path
	if u.Host != "" {
		list = u.Host + strings.TrimSuffix(u.Path, "/")
	}
	fleet, known := new(memcachedFleet), make(map[string]*memcachedServer)
	for addr := range strings.SplitSeq(list, ",") {
		if err := checkMemcachedAddr(addr); err != nil {
			return nil, err
		}
		s := known[addr]
		if s == nil {
			i := slices.IndexFunc(old.servers, func(s *memcachedServer) bool {
				return s.addr == addr && s.timeout == timeout && cap(s.busy) == maxIdle
			})
			if i >= 0 {
				s = old.servers[i]
			} else {
				s = newMemcachedServer(addr, timeout, maxIdle)
			}
			known[addr] = s
			fleet.servers = append(fleet.servers, s)
		}
		fleet.slots = append(fleet.slots, s)
	}
	return fleet, nil
}

// parseServers parses what follows memcached://. The list of servers is kept
// from url.Parse, which would refuse an IPv6 address in it.
func parseServers(rest string) (*url.URL, error) {
	end := strings.IndexAny(rest+"/", "/?#")
	start := strings.LastIndexByte(rest[:end], '@') + 1
	u, err := url.Parse("memcached://" + rest[:start] + "list" + rest[end:])
	if err != nil {
		return nil, errors.Unwrap(err) // *url.Error quotes what it was given
	}
	u.Host = rest[start:end]
	return u, nil
}

// Watch implements Fleet.
func (m *memcached) Watch(fn func(addr string, why error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watch = fn
	for _, s := range m.fleet.Load().servers {
		m.watchServer(s)
	}
}

// watchServer has m.watch told of s. The caller holds mu.
func (m *memcached) watchServer(s *memcachedServer) {
	if fn := m.watch; fn != nil {
		s.health.watchWith(func(why error) { fn(s.addr, why) })
	}
}

// Servers implements Fleet.
func (m *memcached) Servers() []Server {
	var out []Server
	for _, s := range m.fleet.Load().servers {
		out = append(out, Server{s.addr, s.health.down.Load() != nil, s.errors.Load(), s.latency.snapshot()})
	}
	return out
}

func memcachedOptions(u *url.URL) (timeout time.Duration, maxIdle int, err error) {
	if u.User != nil || u.Fragment != "" || u.Opaque != "" {
		return 0, 0, fmt.Errorf("backend %s: want memcached://host:port[,host:port...], no user, password or fragment", u.Redacted())
	}
	query, err := url.ParseQuery(u.RawQuery)
	if err != nil {
		return 0, 0, fmt.Errorf("backend %s: %w", u, err)
	}
	timeout, maxIdle = memcachedTimeout, memcachedMaxIdle
	for name, values := range query {
		value := values[0]
		if len(values) > 1 {
			return 0, 0, fmt.Errorf("backend %s: option %s is given twice", u, name)
		}
		switch name {
		case "timeout":
			timeout, err = time.ParseDuration(value)
			if err != nil || timeout <= 0 {
				return 0, 0, fmt.Errorf("backend %s: timeout=%s: want a duration above 0, such as 500ms", u, value)
			}
		case "max_idle":
			maxIdle, err = strconv.Atoi(value)
			if err != nil || maxIdle < 1 {
				return 0, 0, fmt.Errorf("backend %s: max_idle=%s: want a number of connections, 1 or more", u, value)
			}
		default:
			return 0, 0, fmt.Errorf("backend %s: unknown option %s: valid are timeout, max_idle", u, name)
		}
	}
	return timeout, maxIdle, nil
}

// checkMemcachedAddr demands a port: a default one would take the 11212 of
// "cache1:11211,11212" for a host, and move keys without a word.
func checkMemcachedAddr(addr string) error {
	if strings.HasPrefix(addr, "/") {
		return nil
	}
	host, port, err := net.SplitHostPort(addr)
	if n, bad := strconv.ParseUint(port, 10, 16); err != nil || host == "" || bad != nil || n == 0 {
		return fmt.Errorf("backend memcached: server %q: want host:port or /path/to/socket", addr)
	}
	return nil
}

// pick returns the server of a stored key.
func (f *memcachedFleet) pick(name string) *memcachedServer {
	if len(f.slots) == 1 {
		return f.slots[0]
	}
	// ServerList hashes 256 bytes at most; a stored key never has more than 250.
	sum := crc32.ChecksumIEEE([]byte(name))
	return f.slots[sum%uint32(len(f.slots))]
}

// Get implements Backend.
func (m *memcached) Get(ctx context.Context, key attune.Key, buf []byte) (Record, error) {
	name := memcachedKey(key)
	s := m.fleet.Load().pick(name)
	s.gets.Add(1)
	item, err := s.reads.get(ctx, name)
	if err != nil {
		return Record{}, err
	}
	rec, err := s.record(item)
	if err == nil && len(rec.Value) < Large {
		if buf == nil {
			buf = make([]byte, 0, len(rec.Value))
		}
		rec.Value = append(buf[:0], rec.Value...) // the item may be another caller's, too
	}
	return rec, err
}

// GetMulti implements Batcher. It asks all servers at once, each in turn for
// batches of keys. Equal keys share their value's memory.
func (m *memcached) GetMulti(ctx context.Context, keys []attune.Key, recs []Record, errs []error) {
	names := make([]string, len(keys))
	for i, key := range keys {
		names[i] = memcachedKey(key)
	}
	m.fleet.Load().each(names, func(s *memcachedServer, idx []int) { s.getMulti(ctx, names, idx, recs, errs) })
}

// each calls fn for every server that has some of the names, with their indexes, for
// all at once, and returns when they have returned.
func (f *memcachedFleet) each(names []string, fn func(s *memcachedServer, idx []int)) {
	wanted := make(map[*memcachedServer][]int, len(f.servers))
	for i, name := range names {
		s := f.pick(name)
		wanted[s] = append(wanted[s], i)
	}
	var wg sync.WaitGroup
	for s, idx := range wanted {
		if len(wanted) == 1 {
			fn(s, idx) // a goroutine would only add its own start
		} else {
			wg.Go(func() { fn(s, idx) })
		}
	}
	wg.Wait()
}

// Put implements Backend.
func (m *memcached) Put(ctx context.Context, key attune.Key, rec Record) error {
	return m.write(ctx, &Write{Key: key, Record: rec})
}

// Delete implements Backend. memcached finds records by text alone: without it
// the record stays until memcached forgets it, and its stamp gives it away.
func (m *memcached) Delete(ctx context.Context, key attune.Key) error {
	return m.write(ctx, &Write{Key: key, Delete: true})
}

func (m *memcached) write(ctx context.Context, w *Write) error {
	if w.nothing() {
		return nil
	}
	name := memcachedKey(w.Key)
	s := m.fleet.Load().pick(name)
	if w.large() {
		return s.putLarge(ctx, name, w)
	}
	seat := s.seat(name, w)
	s.pipe.do(ctx, seat)
	return leave(seat)
}

// WriteMulti implements BatchWriter. What is for a server goes in as few round trips as
// may be, for all servers at once.
func (m *memcached) WriteMulti(ctx context.Context, writes []Write, errs []error) {
	names := make([]string, len(writes))
	for i := range writes {
		names[i] = memcachedKey(writes[i].Key)
	}
	m.fleet.Load().each(names, func(s *memcachedServer, idx []int) { s.writeMulti(ctx, names, idx, writes, errs) })
}

// Close implements Backend.
func (m *memcached) Close() error {
	for _, s := range m.fleet.Load().servers {
		s.close()
	}
	return nil
}

// Stats implements Statter. Servers are numbered from 0 in the order of the URL.
func (m *memcached) Stats() []Stat {
	var out []Stat
	for i, s := range m.fleet.Load().servers {
		out = s.appendStats(out, "server_"+strconv.Itoa(i)+"_")
	}
	return out
}
