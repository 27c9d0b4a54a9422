package kvadapter

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
)

const (
	// memcachedListBound is the bytes that the keys of a server may take while it
	// is scanned: some million of them. A server with more is listed in parts.
	memcachedListBound = 32 << 20
	// memcachedListBytes is about the most that is fetched in one request.
	memcachedListBytes = 1 << 20
	// memcachedListPatience is how long a server may say nothing while it lists,
	// and how long it may be busy with another listing.
	memcachedListPatience = 10 * time.Second
)

// Scan implements Scanner: memcached lists its keys (lru_crawler metadump), and
// their records are fetched in batches for stamp and size. It needs memcached
// 1.6.9. Records on a server that their key does not belong to, and items that are
// no records, are passed over; so are records under a hash that were written
// before those had their text with them.
//
// The listing is by memcached's hash table: the one by its LRU lists, as they are
// reordered, passes over items that are read or written meanwhile. memcached holds
// a lock while it writes a listing (before 1.6.19), so all keys are read before
// the first record is fetched, and if there are too many, those of a range of
// hashes; then it is asked again.
func (m *memcached) Scan(ctx context.Context, fn func(key []byte, stamp Stamp, size int) bool) error {
	return m.scan(ctx, &memcachedScan{each: fn})
}

// Keys implements Lister: what Scan fetches it needs for those keys only that cannot
// be read from the listing.
func (m *memcached) Keys(ctx context.Context, fn func(key []byte) bool) error {
	return m.scan(ctx, &memcachedScan{
		each:  func(key []byte, _ Stamp, _ int) bool { return fn(key) },
		plain: fn,
	})
}

// memcachedScan is what is listed, and for whom.
type memcachedScan struct {
	// each is told of every record; but those whose key is told by the listing go to
	// plain, and are not fetched, unless that is nil. Both report whether they want more.
	each  func(key []byte, stamp Stamp, size int) bool
	plain func(key []byte) bool
}

func (m *memcached) scan(ctx context.Context, scan *memcachedScan) error {
	var failed error
	fleet := m.fleet.Load()
	for _, s := range fleet.servers {
		more, err := fleet.scanServer(ctx, s, scan)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && failed != nil:
			failed = fmt.Errorf("%w; %w", failed, err)
		case err != nil:
			failed = err
		case !more:
			return failed
		}
	}
	return failed
}

// scanServer reports whether more is wanted.
func (f *memcachedFleet) scanServer(ctx context.Context, s *memcachedServer, scan *memcachedScan) (bool, error) {
	list := memcachedList{bound: memcachedListBound}
	for {
		if err := s.list(ctx, &list); err != nil {
			return true, err
		}
		more, err := f.visit(ctx, s, &list, scan)
		if !more || err != nil || !list.next() {
			return more, err
		}
	}
}

// visit tells scan of what is listed. It reports whether more is wanted.
func (f *memcachedFleet) visit(ctx context.Context, s *memcachedServer, list *memcachedList, scan *memcachedScan) (bool, error) {
	for rest := list.entries; len(rest) > 0; {
		var batch []string
		for size := 0; len(rest) > 0 && len(batch) < memcachedBatch && size < memcachedListBytes; {
			var entry []byte
			entry, rest = cutListEntry(rest)
			name := entry[listHead:]
			switch {
			case f.pick(string(name)) != s:
			case scan.plain == nil || name[0] == memcachedHashed:
				batch = append(batch, string(name))
				size += int(binary.LittleEndian.Uint32(entry[1:]))
			case ctx.Err() != nil:
				return true, context.Cause(ctx)
			case !scan.plain(name):
				return false, nil
			}
		}
		if len(batch) == 0 {
			continue
		}
		var items map[string]*memcache.Item
		err := s.call(ctx, func() (err error) {
			items, err = s.client.GetMulti(batch)
			return err
		})
		if err != nil {
			return true, err
		}
		for name, item := range items {
			text, rec, ok := parseMemcachedRecord(item.Value)
			if !ok || (text == nil) == (name[0] == memcachedHashed) {
				continue
			}
			if text == nil {
				text = []byte(name)
			}
			if !scan.each(text, rec.Stamp, len(rec.Value)) {
				return false, nil
			}
		}
	}
	return true, nil
}

// Items implements Counter.
func (m *memcached) Items(ctx context.Context) (int64, error) {
	var sum int64
	for _, s := range m.fleet.Load().servers {
		n := int64(-1)
		err := s.ask(ctx, "stats", s.timeout, func(line []byte) (bool, error) {
			if digits, ok := bytes.CutPrefix(line, []byte("STAT curr_items ")); ok {
				var err error
				if n, err = strconv.ParseInt(string(digits), 10, 64); err != nil || n < 0 {
					return false, s.nonsense(line)
				}
			} else if !bytes.HasPrefix(line, []byte("STAT ")) && !bytes.Equal(line, memcachedEnd) {
				return false, s.nonsense(line)
			}
			return !bytes.Equal(line, memcachedEnd), nil
		})
		if err != nil {
			return 0, err
		}
		if n < 0 {
			return 0, s.unavailable("its stats lack curr_items")
		}
		sum += n
	}
	return sum, nil
}

// memcachedList is the keys of one server, or those whose checksum is in a range:
// as many as are within the bound.
type memcachedList struct {
	bound   int
	from    uint64 // the range's first checksum
	to      uint64 // the one behind its last; 0 before the first listing
	entries []byte // 1 key length | 4 size of the item | key
}

const (
	listHead = 5
	// listEnd is behind all checksums.
	listEnd = 1 << 32
)

func cutListEntry(b []byte) (entry, rest []byte) {
	n := listHead + int(b[0])
	return b[:n], b[n:]
}

// begin empties the list for a listing: of what is left, until that is too much.
func (l *memcachedList) begin() { l.to, l.entries = listEnd, l.entries[:0] }

// next moves on to what the listing before left out, and reports whether that is
// anything.
func (l *memcachedList) next() bool {
	l.from = l.to
	return l.to != listEnd
}

func (l *memcachedList) has(name []byte) bool {
	sum := uint64(crc32.ChecksumIEEE(name))
	return l.from <= sum && sum < l.to
}

// add takes a key if it is in the range, and halves that if the keys in it are
// too many.
func (l *memcachedList) add(name []byte, size uint32) {
	if !l.has(name) {
		return
	}
	l.entries = append(l.entries, byte(len(name)))
	l.entries = binary.LittleEndian.AppendUint32(l.entries, size)
	l.entries = append(l.entries, name...)
	for len(l.entries) > l.bound && l.to-l.from > 1 {
		l.to = l.from + (l.to-l.from)/2
		kept := l.entries[:0]
		for rest := l.entries; len(rest) > 0; {
			var entry []byte
			if entry, rest = cutListEntry(rest); l.has(entry[listHead:]) {
				kept = append(kept, entry...)
			}
		}
		l.entries = kept
	}
}

var (
	memcachedEnd = []byte("END")
	memcachedOK  = []byte("OK")
)

// errListBusy is that of a server that lists for somebody else, or looks for
// expired items.
var errListBusy = errors.New("busy")

// list reads the server's keys into l. It tries again while the server is busy.
func (s *memcachedServer) list(ctx context.Context, l *memcachedList) error {
	for start := time.Now(); ; {
		l.begin()
		err := s.ask(ctx, "lru_crawler metadump hash", memcachedListPatience, func(line []byte) (bool, error) {
			return s.listed(line, l)
		})
		if !errors.Is(err, errListBusy) {
			return err
		}
		if time.Since(start) > memcachedListPatience {
			return s.unavailable("it is busy with another listing (lru_crawler); try again later")
		}
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// listed takes a line of a listing into l, and reports whether more follow.
func (s *memcachedServer) listed(line []byte, l *memcachedList) (more bool, err error) {
	switch {
	case bytes.HasPrefix(line, []byte("key=")):
		name, size, ok := parseListLine(line)
		if !ok {
			return false, s.nonsense(line)
		}
		if verbatim(name) || name[0] == memcachedHashed && verbatim(name[1:]) { // else it is not ours
			l.add(name, size)
		}
		return true, nil
	case bytes.Equal(line, memcachedEnd):
		return false, nil
	case bytes.Equal(line, memcachedOK): // some versions open with it
		return true, nil
	case bytes.HasPrefix(line, []byte("BUSY")):
		return false, errListBusy
	case bytes.Contains(line, []byte("disabled")):
		return false, s.unavailable(fmt.Sprintf("it cannot list its keys: %q; start memcached without no_lru_crawler", line))
	case bytes.HasPrefix(line, []byte("ERROR")), bytes.HasPrefix(line, []byte("CLIENT_ERROR")), bytes.HasPrefix(line, []byte("BADCLASS")):
		return false, s.unavailable(fmt.Sprintf("it cannot list its keys: %q; that takes memcached 1.6.9 or newer", line))
	}
	return false, s.nonsense(line)
}

// parseListLine returns the key and the size in bytes, all included, of
//
//	key=a%20key exp=-1 la=1700000000 cas=1 fetch=no cls=1 size=63
//
// The fields between and behind differ from version to version.
func parseListLine(line []byte) (name []byte, size uint32, ok bool) {
	fields := bytes.Split(line, []byte{' '})
	quoted, ok := bytes.CutPrefix(fields[0], []byte("key="))
	if !ok {
		return nil, 0, false
	}
	for i := 0; i < len(quoted); i++ {
		b := quoted[i]
		if b == '%' {
			if i+2 >= len(quoted) {
				return nil, 0, false
			}
			n, err := strconv.ParseUint(string(quoted[i+1:i+3]), 16, 8)
			if err != nil {
				return nil, 0, false
			}
			b, i = byte(n), i+2
		} else if b <= ' ' || b >= 0x7f {
			return nil, 0, false
		}
		name = append(name, b)
	}
	if len(name) == 0 || len(name) > 250 {
		return nil, 0, false
	}
	for _, field := range fields[1:] {
		if digits, ok := bytes.CutPrefix(field, []byte("size=")); ok {
			n, err := strconv.ParseUint(string(digits), 10, 32)
			return name, uint32(n), err == nil
		}
	}
	return nil, 0, false
}

// ask sends a command that gomemcache does not have, on a connection of its own,
// and hands each line of the answer to fn until that wants no more. patience is
// how long the server may be silent.
func (s *memcachedServer) ask(ctx context.Context, command string, patience time.Duration, fn func(line []byte) (more bool, err error)) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	dialling, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	addr := memcachedAddr{s.addr}
	nc, err := new(net.Dialer).DialContext(dialling, addr.Network(), s.addr)
	if err == nil {
		defer nc.Close()
		stop := context.AfterFunc(ctx, func() { nc.Close() })
		defer stop()
		err = exchange(&patientConn{nc, patience}, command, fn)
	}
	var op *net.OpError
	switch {
	case err == nil || errors.Is(err, ErrUnavailable) || errors.Is(err, errListBusy):
		return err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, os.ErrDeadlineExceeded):
		return s.unavailable(fmt.Sprintf("no answer within %v", patience))
	case dialling.Err() != nil:
		return s.unavailable(fmt.Sprintf("no connection within %v", s.timeout))
	case errors.Is(err, io.EOF):
		return s.unavailable("it closed the connection in the middle of an answer")
	case errors.As(err, &op):
		return s.unavailable(op.Err.Error())
	}
	return s.unavailable(err.Error())
}

// memcachedLine is the longest line of an answer, and what is read at a time. A key
// of 250 bytes, quoted, and its fields are about a KiB.
const memcachedLine = 64 << 10

var errLongLine = fmt.Errorf("it answered with a line longer than %d bytes", memcachedLine)

func exchange(nc net.Conn, command string, fn func(line []byte) (more bool, err error)) error {
	if _, err := io.WriteString(nc, command+"\r\n"); err != nil {
		return err
	}
	in := bufio.NewReaderSize(nc, memcachedLine)
	for more := true; more; {
		line, err := in.ReadSlice('\n')
		if errors.Is(err, bufio.ErrBufferFull) {
			return errLongLine
		}
		if err != nil {
			return err
		}
		line = bytes.TrimSuffix(line[:len(line)-1], []byte{'\r'})
		if more, err = fn(line); err != nil {
			return err
		}
	}
	return nil
}

func (s *memcachedServer) nonsense(line []byte) error {
	return s.unavailable(fmt.Sprintf("it answered %.80q", line))
}

// patientConn gives each Read and Write a deadline.
type patientConn struct {
	net.Conn
	patience time.Duration
}

// Read implements net.Conn.
func (c *patientConn) Read(p []byte) (int, error) {
	_ = c.SetDeadline(time.Now().Add(c.patience)) // fails if closed, as what follows then does
	return c.Conn.Read(p)
}

// Write implements net.Conn.
func (c *patientConn) Write(p []byte) (int, error) {
	_ = c.SetDeadline(time.Now().Add(c.patience))
	return c.Conn.Write(p)
}
