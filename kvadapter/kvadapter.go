package kvadapter

import (
	"context"
	"errors"
	"time"

	"github.com/attunekv/attune"
)

// Large is the size in bytes from which a value is handed over instead of
// copied: neither caller nor backend may modify it afterwards, and either may
// keep it. Smaller values are copied at the border, in both directions.
const Large = 32 << 10

// Stamp names the change that wrote a record: the generation of the cluster and
// the version. It tells bytes that are current from bytes a store forgot to
// forget.
type Stamp struct {
	Gen     uint32
	Version attune.Version
}

// Record is what a backend keeps for a key.
type Record struct {
	Stamp Stamp
	Value []byte
}

// Sentinel errors. A backend wraps them with what it knows: which server, which
// file.
var (
	// ErrNotFound is returned by Get for a key that was never put, was deleted,
	// or was forgotten, and for bytes that are not a record of this software.
	ErrNotFound = errors.New("no such record")
	// ErrUnavailable is returned when the store did not answer, or answered
	// that it cannot. A Put or Delete may or may not have happened.
	ErrUnavailable = errors.New("backend unavailable")
	// ErrTooLarge is returned by Put for a record the store will never take.
	ErrTooLarge = errors.New("value too large for the backend")
	// ErrFull is returned by Put when the store has no room left. The record
	// put before, if any, may be gone.
	ErrFull = errors.New("backend is full")
)

// Backend keeps bytes for one controller. It knows no version, expiry or peer:
// a record it returns may be old, and the caller compares stamps. All methods
// may be called concurrently; two Puts to one key leave either.
type Backend interface {
	// Get returns the record last put. A value shorter than Large is appended
	// to buf[:0], growing it if it must; a larger one may be the backend's own
	// memory. Errors: ErrNotFound, ErrUnavailable, the cause of ctx.
	Get(ctx context.Context, key attune.Key, buf []byte) (Record, error)
	// Put keeps rec under key until it is deleted, replaced or forgotten. It
	// copies rec.Value if shorter than Large, and may keep it otherwise.
	// Errors: ErrUnavailable, ErrTooLarge, ErrFull, the cause of ctx.
	Put(ctx context.Context, key attune.Key, rec Record) error
	// Delete forgets the record; a key that has none is no error. A backend
	// that finds records by text alone does nothing if key.Text is nil.
	// Errors: ErrUnavailable, the cause of ctx.
	Delete(ctx context.Context, key attune.Key) error
	// Close releases what the backend holds; no call may follow.
	Close() error
}

// Memory is a Backend that lives in this process: its calls neither wait nor
// fail for want of a server, so a replica makes them under its own locks, and
// bytes and index change together.
type Memory interface {
	Backend
	// Used is the bytes that live records cost, overhead included. The memory
	// taken from the operating system stays within 8 % of it, plus 2 MiB.
	Used() int64
	// Prefetch has the processor fetch what Get or Put of key will touch first.
	Prefetch(key attune.Key)
}

// Loader is a Backend that finds a record without its key's text, and returns it.
// It answers at once, or as soon as a disk of this machine does.
type Loader interface {
	// Load returns the text and the record that were put under a hash, one after
	// the other in buf, growing it if it must; a Value of Large or more may be the
	// backend's own memory. The text begins where buf does. ok is false, and text
	// empty, if there is none.
	Load(h attune.KeyHash, buf []byte) (text []byte, rec Record, ok bool)
}

// Batcher is a Backend that fetches many records for less than one by one:
// recs[i] and errs[i] are what Get would return for keys[i]. A server that fails
// fails its own keys only.
type Batcher interface {
	GetMulti(ctx context.Context, keys []attune.Key, recs []Record, errs []error)
}

// Write is what Put or, if Delete is set, Delete of a key is called with.
type Write struct {
	Key    attune.Key
	Record Record
	Delete bool
}

// To makes the call of b.
func (w *Write) To(ctx context.Context, b Backend) error {
	if w.Delete {
		return b.Delete(ctx, w.Key)
	}
	return b.Put(ctx, w.Key, w.Record)
}

// BatchWriter is a Backend that takes many records and deletions, of different keys, for
// less than one by one: errs[i] is what Put or Delete would return. A server that fails,
// fails its own keys only.
type BatchWriter interface {
	WriteMulti(ctx context.Context, writes []Write, errs []error)
}

// Spread is a Backend whose records are on several servers, each as fast as it is.
type Spread interface {
	// Server is the number of the one that key belongs to, from 0.
	Server(key attune.Key) int
}

// Bounded is a Backend that takes records up to some size only.
type Bounded interface {
	// Takes says what a Put of a value of size bytes would: nil, or ErrTooLarge; or
	// ErrUnavailable if it cannot tell, as the server the key belongs to has not said
	// yet. It waits for nobody.
	Takes(key attune.Key, size int) error
}

// Scanner is a Backend that can list what it holds, in no particular order and
// without a consistent cut: a record that is there throughout is listed once. It
// stops early when fn returns false. key is valid until fn returns. fn may take
// its time, and call the backend: it is called with no lock held. A store of many
// servers lists those that answer before it fails for one that does not. Errors:
// ErrUnavailable, the cause of ctx.
type Scanner interface {
	Scan(ctx context.Context, fn func(key []byte, stamp Stamp, size int) bool) error
}

// Lister is a Scanner that lists keys for less than Scan costs, those among them of
// items that others wrote. All else is as with Scan.
type Lister interface {
	Keys(ctx context.Context, fn func(key []byte) bool) error
}

// Counter is a Backend that knows how many items its stores hold, those among
// them that others wrote. Errors: ErrUnavailable if one of them did not say, the
// cause of ctx.
type Counter interface {
	Items(ctx context.Context) (int64, error)
}

// Stat is one named figure of a backend, for `stats` and /metrics.
type Stat struct {
	Name  string // lower case, underscores
	Value int64
}

// Statter is a Backend that has figures to show.
type Statter interface {
	Stats() []Stat
}

// LatencyBuckets is how many buckets a Latency has: bucket i counts what took less
// than 2^i microseconds, the last one everything else.
const LatencyBuckets = 25

// Latency is how long calls took.
type Latency struct {
	Buckets [LatencyBuckets]uint64
	Sum     time.Duration
}

// Server is what a backend has seen of one of its servers.
type Server struct {
	Addr    string
	Down    bool  // calls fail at once, until it answers a probe
	Errors  int64 // calls that failed, those included
	Latency Latency
}

// Fleet is a Backend of servers outside this process, each of which may fail.
type Fleet interface {
	Backend
	Servers() []Server
	// Watch has fn called when a server goes down, and why, and with a nil error
	// when it is up again. It is called once, before the first use. fn must neither
	// wait nor call the backend.
	Watch(fn func(addr string, why error))
	// Reconfigure goes over to the servers and options of another spec of the same
	// kind, without a restart. Calls under way end where they began. What is kept
	// where it is sought no more is not found. On error nothing has changed.
	Reconfigure(spec string) error
}

// Syncer is a Backend whose records outlive the process: it is in one machine with
// the controller, and serves it alone.
type Syncer interface {
	// Sync returns when everything that was put or deleted before it was called
	// survives loss of power. Errors: ErrUnavailable, the cause of ctx.
	Sync(ctx context.Context) error
}

// Mender is a Backend that gives up what is damaged of it, and goes on.
type Mender interface {
	// Damages is how often it has, since it was opened and then: records are lost that
	// nobody deleted.
	Damages() int64
}
