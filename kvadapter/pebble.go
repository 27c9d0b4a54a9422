package kvadapter

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/bloom"
	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/dustin/go-humanize"
	"go.uber.org/zap"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/room"
)

const (
	// pebbleCache is the cache of a URL that names none, in bytes.
	pebbleCache = 64 << 20
	// pebbleMemTable is how much is gathered in memory before it is written to a
	// file, and pebbleMemTables how often that may be waiting to be written.
	pebbleMemTable  = 16 << 20
	pebbleMemTables = 4
	// pebbleBits per record in the filters that tell which files need not be read.
	pebbleBits = 10
	// pebbleScan is how many records Scan takes between two looks at the files,
	// which could not be deleted while it looks.
	pebbleScan = 1024
	// pebbleReserve is the least that reserve may be: who waits for room goes on when
	// there is so much, and must get somewhere with it.
	pebbleReserve = 16 << 20
	// pebbleClose is how long Close waits for the disk.
	pebbleClose = 10 * time.Second
	// asidePrefix is what the names of directories of damaged files begin with.
	asidePrefix = "corrupt-"
)

// pebbleStore keeps records in the files of a directory, with Pebble, a log
// structured merge tree.
//
// It writes no log of its own. Whoever needs a record after a crash has it in a log
// already, as every engine that keeps anything on disk does, until Sync says that it
// is in a file here. Without a crash Close writes all to files.
//
// A key is the record's hash, so Delete and Load need no text. What comes of a disk
// that fills up, and of files that are damaged, is in pebble_events.go.
type pebbleStore struct {
	dir  string
	fs   vfs.FS
	lock *pebble.Lock // nil if Pebble made the directory
	db   *pebble.DB
	log  *zap.Logger
	room *room.Watch

	sealing sync.Mutex // guards what is next to it, and the file
	sealed  seal

	closing   chan struct{} // closed when Close begins
	damages   chan damage
	mended    chan struct{} // closed when the mending of damages ended
	corrupt   atomic.Int64  // times that a damaged file was met
	dropped   atomic.Int64  // and given up
	aside     atomic.Int64  // times that all files were
	waits     atomic.Int64  // times that writes had to wait for compaction
	waited    atomic.Int64  // and for how long, nanoseconds
	waitBegan atomic.Int64  // unix nanoseconds
}

var (
	_ Backend = (*pebbleStore)(nil)
	_ Loader  = (*pebbleStore)(nil)
	_ Mender  = (*pebbleStore)(nil)
	_ Scanner = (*pebbleStore)(nil)
	_ Statter = (*pebbleStore)(nil)
	_ Syncer  = (*pebbleStore)(nil)
)

// pebbleOptions are what a URL says.
type pebbleOptions struct {
	dir            string
	cache, reserve int64
	fs             vfs.FS // tests have others
}

// PebbleDir is the directory that a backend's URL names, and how many bytes are to be
// left free on its disk: Put refuses when they are not, and who decides writes should
// before. dir is "" if the URL is not of that kind, or makes no sense.
func PebbleDir(spec string) (dir string, reserve uint64) {
	rest, ok := strings.CutPrefix(spec, "pebble://")
	if !ok {
		return "", 0
	}
	o, err := parsePebble(rest)
	if err != nil {
		return "", 0
	}
	return filepath.Dir(o.dir), uint64(o.reserve)
}

// parsePebble reads what follows pebble://, a path and perhaps options:
//
//	pebble:///dir[?cache=64MiB&reserve=128MiB]
//
// cache is the memory for what was read; reserve the room that is left free on the
// disk: with less, nothing is put (at least 16MiB).
func parsePebble(rest string) (o pebbleOptions, err error) {
	path, query, _ := strings.Cut(rest, "?")
	o = pebbleOptions{cache: pebbleCache, reserve: room.Reserve, fs: vfs.Default}
	if !filepath.IsAbs(path) {
		return o, errors.New("want the absolute path of a directory, such as pebble:///var/lib/attune")
	}
	o.dir = filepath.Join(filepath.Clean(path), "bytes")
	values, err := url.ParseQuery(query)
	if err != nil {
		return o, err
	}
	for name, vs := range values {
		if len(vs) != 1 {
			return o, fmt.Errorf("option %q is given %d times", name, len(vs))
		}
		size, err := parseSize(vs[0])
		if err != nil {
			return o, fmt.Errorf("option %s: want a size such as 64MiB, have %q", name, vs[0])
		}
		switch name {
		case "cache":
			if o.cache = size; size < 1<<20 {
				return o, fmt.Errorf("option cache: want at least 1MiB, have %q", vs[0])
			}
		case "reserve":
			if o.reserve = size; size < pebbleReserve {
				return o, fmt.Errorf("option reserve: want at least 16MiB, have %q", vs[0])
			}
		default:
			return o, fmt.Errorf("no option is called %q: choose cache or reserve", name)
		}
	}
	return o, nil
}

// parseSize reads bytes with or without a unit.
func parseSize(s string) (int64, error) {
	n, err := humanize.ParseBytes(s)
	if err != nil || n > 1<<50 {
		return 0, strconv.ErrRange
	}
	return int64(n), nil
}

// openPebble opens the directory, and makes it if it is not there. Files that
// contradict themselves are moved beside it, to corrupt-TIME, and an empty store
// takes their place.
func openPebble(o pebbleOptions, log *zap.Logger) (*pebbleStore, error) {
	s, err := startPebble(o, log)
	switch {
	case errors.Is(err, os.ErrPermission):
		return nil, fmt.Errorf("%w: this process must be allowed to read and write the directory and all files in it", err)
	case err != nil && (errors.Is(err, syscall.EAGAIN) || strings.Contains(err.Error(), "lock held")):
		return nil, fmt.Errorf("%w: in use by another process: stop that, or give this one another directory", err)
	case err == nil, !pebble.IsCorruptionError(err) && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, errSeal):
		return s, err
	}
	aside := filepath.Join(filepath.Dir(o.dir), asidePrefix+time.Now().UTC().Format("20060102T150405.000000000"))
	log.Error("the store's files are damaged; it begins empty, and what other controllers have comes back from them",
		zap.String("dir", o.dir), zap.String("moved to", aside), zap.Error(err))
	if err := setAside(o, aside); err != nil {
		return nil, err
	}
	if s, err = startPebble(o, log); err != nil {
		return nil, err
	}
	s.aside.Add(1)
	return s, nil
}

// setAside moves all files to another directory, and removes an earlier one: one is
// enough to look at, and each may be large.
func setAside(o pebbleOptions, to string) error {
	parent := filepath.Dir(o.dir)
	names, err := o.fs.List(parent)
	if err != nil {
		return err
	}
	for _, name := range names {
		if strings.HasPrefix(name, asidePrefix) {
			if err := o.fs.RemoveAll(filepath.Join(parent, name)); err != nil {
				return err
			}
		}
	}
	return o.fs.Rename(o.dir, to)
}

func startPebble(o pebbleOptions, log *zap.Logger) (*pebbleStore, error) {
	s := &pebbleStore{
		dir: o.dir, log: log.Named("pebble"), room: room.New(func(error) {}, room.Reserved{Dir: o.dir, Reserve: uint64(o.reserve)}),
		closing: make(chan struct{}), damages: make(chan damage, 1), mended: make(chan struct{}),
	}
	opts := &pebble.Options{
		FS:                 vfs.OnDiskFull(o.fs, s.awaitRoom),
		FormatMajorVersion: pebble.FormatNewest,
		DisableWAL:         true,
		CacheSize:          o.cache,
		// A file that is missing or too short costs what was in it, as any that is
		// damaged, and not all others.
		DisableConsistencyCheck: true,
		Logger:                  pebbleLogger{s},
		EventListener:           s.events(),
		MemTableSize:            pebbleMemTable,
		// Reads of many files are better than writes that wait for compaction: the
		// filters keep them cheap.
		MemTableStopWritesThreshold: pebbleMemTables,
		L0CompactionThreshold:       2,
		L0StopWritesThreshold:       64,
		CompactionConcurrencyRange:  func() (int, int) { return 1, max(1, runtime.GOMAXPROCS(0)/2) },
	}
	for i := range opts.Levels {
		opts.Levels[i].FilterPolicy = bloom.FilterPolicy(pebbleBits)
	}
	s.fs = opts.FS
	var err error
	if s.lock, err = checkSeal(o.fs, o.dir); err == nil {
		opts.Lock = s.lock
		s.db, err = pebble.Open(o.dir, opts)
	}
	if err != nil {
		s.room.Close()
		return nil, errors.Join(err, s.unlock())
	}
	go s.mend()
	if err := s.sealFiles(); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

// unlock lets go of the directory, if s has locked it and not Pebble.
func (s *pebbleStore) unlock() error {
	if s.lock == nil {
		return nil
	}
	return s.lock.Close()
}

// Get implements Backend. It allocates only if buf is too short.
func (s *pebbleStore) Get(ctx context.Context, key attune.Key, buf []byte) (Record, error) {
	if ctx.Err() != nil {
		return Record{}, context.Cause(ctx)
	}
	_, rec, err := s.read(key, buf, false)
	return rec, err
}

// Load implements Loader. It allocates only if buf is too short.
func (s *pebbleStore) Load(h attune.KeyHash, buf []byte) (text []byte, rec Record, ok bool) {
	text, rec, err := s.read(attune.Key{Hash: h}, buf, true)
	return text, rec, err == nil
}

// read appends to buf[:0] the text, if that is wanted, and the value.
func (s *pebbleStore) read(key attune.Key, buf []byte, withText bool) (text []byte, rec Record, err error) {
	name := pebbleKey(key.Hash)
	raw, closer, err := s.db.Get(name[:])
	if err != nil {
		return buf[:0], Record{}, s.judge(err)
	}
	defer closer.Close()
	stamp, was, value, ok := decodePebble(raw)
	if !ok || key.Text != nil && string(key.Text) != string(was) {
		return buf[:0], Record{}, ErrNotFound
	}
	text = buf[:0]
	if withText {
		text = append(text, was...)
	}
	rec = Record{Stamp: stamp}
	if len(value) >= Large {
		rec.Value = append(make([]byte, 0, len(value)), value...)
		return text, rec, nil
	}
	n := len(text)
	text = append(text, value...)
	rec.Value = text[n:]
	if rec.Value == nil {
		rec.Value = []byte{}
	}
	return text[:n], rec, nil
}

// judge is what a failed read means. What is damaged is lost.
func (s *pebbleStore) judge(err error) error {
	if errors.Is(err, pebble.ErrNotFound) || pebble.IsCorruptionError(err) {
		return ErrNotFound
	}
	return fmt.Errorf("%w: %s cannot be read: %w", ErrUnavailable, s.dir, err)
}

// Put implements Backend. It waits, whatever becomes of ctx meanwhile, if the disk
// is slower than what is put.
func (s *pebbleStore) Put(ctx context.Context, key attune.Key, rec Record) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if n := len(key.Text); n < 1 || n > maxKey {
		return fmt.Errorf("%w: key of %d bytes, not 1 to %d", ErrTooLarge, n, maxKey)
	}
	if err := s.room.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrFull, err)
	}
	b := s.db.NewBatchWithSize(pebbleHead + len(key.Text) + len(rec.Value) + 64)
	defer b.Close()
	op := b.SetDeferred(16, pebbleHead+len(key.Text)+len(rec.Value))
	name := pebbleKey(key.Hash)
	copy(op.Key, name[:])
	encodePebble(op.Value, rec, key.Text)
	if err := op.Finish(); err != nil {
		return err
	}
	return s.apply(b)
}

// Delete implements Backend. It needs only the key's hash.
func (s *pebbleStore) Delete(ctx context.Context, key attune.Key) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	b := s.db.NewBatch()
	defer b.Close()
	name := pebbleKey(key.Hash)
	if err := b.Delete(name[:], nil); err != nil {
		return err
	}
	return s.apply(b)
}

func (s *pebbleStore) apply(b *pebble.Batch) error {
	if err := b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("%w: %s cannot be written: %w", ErrUnavailable, s.dir, err)
	}
	return nil
}

// Sync implements Syncer: it has what is in memory written to a file.
func (s *pebbleStore) Sync(ctx context.Context) error {
	written, err := s.db.AsyncFlush()
	if err != nil {
		return fmt.Errorf("%w: %s cannot be written: %w", ErrUnavailable, s.dir, err)
	}
	select {
	case <-written:
	case <-ctx.Done():
		return context.Cause(ctx)
	}
	if err := s.sealFiles(); err != nil {
		return fmt.Errorf("%w: %s cannot be written: %w", ErrUnavailable, s.dir, err)
	}
	return nil
}

// Scan implements Scanner, in the order of hashes. fn may call the store.
func (s *pebbleStore) Scan(ctx context.Context, fn func(key []byte, stamp Stamp, size int) bool) error {
	type entry struct {
		end   int // of the key in text
		stamp Stamp
		size  int
	}
	var (
		entries []entry
		text    []byte
		from    []byte
	)
	for more := true; more; {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		entries, text, more = entries[:0], text[:0], false
		it, err := s.db.NewIter(&pebble.IterOptions{LowerBound: from})
		if err != nil {
			return s.judge(err)
		}
		for ok := it.First(); ok; ok = it.Next() {
			if more = len(entries) == pebbleScan; more {
				from = append(from[:0], it.Key()...)
				break
			}
			var raw []byte
			if raw, err = it.ValueAndErr(); err != nil {
				break
			}
			if stamp, key, value, ok := decodePebble(raw); ok {
				text = append(text, key...)
				entries = append(entries, entry{len(text), stamp, len(value)})
			}
		}
		if err = errors.Join(err, it.Close()); err != nil {
			return fmt.Errorf("%w: %s cannot be read: %w", ErrUnavailable, s.dir, err)
		}
		start := 0
		for _, e := range entries {
			if !fn(text[start:e.end:e.end], e.stamp, e.size) {
				return nil
			}
			start = e.end
		}
	}
	return nil
}

// Stats implements Statter.
func (s *pebbleStore) Stats() []Stat {
	m := s.db.Metrics()
	return []Stat{
		{"disk_bytes", int64(m.DiskSpaceUsage())},
		{"memtable_bytes", int64(m.MemTable.Size)},
		{"cache_bytes", m.BlockCache.Size},
		{"cache_hits", m.BlockCache.Hits},
		{"cache_misses", m.BlockCache.Misses},
		{"files_per_read", int64(m.ReadAmp())},
		{"compactions", m.Compact.Count},
		{"compaction_debt_bytes", int64(m.Compact.EstimatedDebt)},
		{"write_waits", s.waits.Load()},
		{"write_waits_ms", s.waited.Load() / int64(time.Millisecond)},
		{"damages_met", s.corrupt.Load()},
		{"damaged_files_dropped", s.dropped.Load()},
		{"damaged_stores_set_aside", s.aside.Load()},
	}
}

// Damages implements Mender.
func (s *pebbleStore) Damages() int64 { return s.dropped.Load() + s.aside.Load() }

// Close implements Backend. What is in memory only is written, if the disk has
// room.
func (s *pebbleStore) Close() error {
	close(s.closing)
	<-s.mended
	err := s.room.Err()
	if err == nil {
		ctx, cancel := context.WithTimeout(context.Background(), pebbleClose)
		defer cancel()
		err = s.Sync(ctx)
	}
	s.room.Close()
	return errors.Join(err, s.db.Close(), s.unlock())
}
