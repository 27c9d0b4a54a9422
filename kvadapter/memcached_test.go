package kvadapter_test

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"go.uber.org/goleak"

	"github.com/attunekv/attune"
	"github.com/attunekv/attune/internal/attunetest"
	"github.com/attunekv/attune/kvadapter"
	"github.com/attunekv/attune/kvadapter/storetest"
)

// slack is what a busy machine may add to a time limit.
const slack = 1500 * time.Millisecond

// openMemcached opens the backend of servers. It is closed with the test, which
// must then have left no goroutine behind.
func openMemcached(t testing.TB, servers, query string) kvadapter.Backend {
	t.Helper()
	b, err := kvadapter.Open("memcached://" + servers + query)
	if err != nil {
		t.Fatal(err)
	}
	if t, ok := t.(*testing.T); ok {
		const fake, process = "github.com/attunekv/attune/kvadapter_test.(*fakeMemcached).", "github.com/attunekv/attune/internal/testbed.Launch.func1"
		ignore := []goleak.Option{goleak.IgnoreCurrent()}
		for _, f := range []string{fake + "accept", fake + "serve", process} { // servers started again wait for their own
			ignore = append(ignore, goleak.IgnoreAnyFunction(f))
		}
		t.Cleanup(func() { goleak.VerifyNone(t, ignore...) })
	}
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

func mkey(text string) attune.Key {
	b := []byte(text)
	h := uint64(14695981039346656037)
	for _, c := range b {
		h = (h ^ uint64(c)) * 1099511628211
	}
	return attune.Key{Text: b, Hash: attune.KeyHash{h, ^h}}
}

func mrec(version attune.Version, value string) kvadapter.Record {
	return kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 7, Version: version}, Value: []byte(value)}
}

func mustPut(t testing.TB, b kvadapter.Backend, key string, rec kvadapter.Record) {
	t.Helper()
	if err := b.Put(t.Context(), mkey(key), rec); err != nil {
		t.Fatalf("put %q: %v", key, err)
	}
}

func mustGet(t testing.TB, b kvadapter.Backend, key string, want kvadapter.Record) {
	t.Helper()
	got, err := b.Get(t.Context(), mkey(key), nil)
	if err != nil || got.Stamp != want.Stamp || !bytes.Equal(got.Value, want.Value) {
		t.Fatalf("get %q: got %v %.40q, %v; want %v %.40q", key, got.Stamp, got.Value, err, want.Stamp, want.Value)
	}
}

// multi is GetMulti of keys by their text.
func multi(ctx context.Context, b kvadapter.Backend, texts ...string) ([]kvadapter.Record, []error) {
	keys := make([]attune.Key, len(texts))
	for i, text := range texts {
		keys[i] = mkey(text)
	}
	recs, errs := make([]kvadapter.Record, len(keys)), make([]error, len(keys))
	b.(kvadapter.Batcher).GetMulti(ctx, keys, recs, errs)
	return recs, errs
}

func mustMiss(t testing.TB, b kvadapter.Backend, key string) {
	t.Helper()
	if got, err := b.Get(t.Context(), mkey(key), nil); !errors.Is(err, kvadapter.ErrNotFound) {
		t.Fatalf("get %q: got %.40q, %v; want ErrNotFound", key, got.Value, err)
	}
}

// mustFail checks that err is of kind, is one line, and has each of words in it.
func mustFail(t testing.TB, err, kind error, words ...string) {
	t.Helper()
	if !errors.Is(err, kind) {
		t.Fatalf("got %v, want %v", err, kind)
	}
	if strings.ContainsAny(err.Error(), "\r\n") {
		t.Errorf("more than a line: %q", err)
	}
	for _, word := range words {
		if !strings.Contains(err.Error(), word) {
			t.Errorf("%q lacks %q", err, word)
		}
	}
}

func mstat(t testing.TB, b kvadapter.Backend, name string) int64 {
	t.Helper()
	for _, stat := range b.(kvadapter.Statter).Stats() {
		if stat.Name == name {
			return stat.Value
		}
	}
	t.Fatalf("no stat %s", name)
	return 0
}

// on returns n keys that gomemcache's own selector puts on server i of servers.
func on(t testing.TB, servers []string, i, n int) (keys []string) {
	t.Helper()
	list := new(memcache.ServerList)
	if err := list.SetServers(servers...); err != nil {
		t.Fatal(err)
	}
	for k := 0; len(keys) < n; k++ {
		key := fmt.Sprintf("key-%d", k)
		if addr, _ := list.PickServer(key); addr.String() == servers[i] {
			keys = append(keys, key)
		}
	}
	return keys
}

func TestMemcachedURL(t *testing.T) {
	for _, spec := range []string{
		"memcached://127.0.0.1:11211",
		"memcached://127.0.0.1:11211/",
		"memcached://cache1:11211,cache2:11211,cache1:11211?timeout=1s&max_idle=1",
		"memcached://[::1]:11211",
		"memcached:///run/a.sock",
		"memcached:///run/a.sock,/run/b.sock?max_idle=8",
	} {
		b, err := kvadapter.Open(spec)
		if err != nil {
			t.Errorf("%s: %v", spec, err)
			continue
		}
		b.Close()
	}
	for _, test := range []struct{ spec, want string }{
		{"memcached://", `server ""`},
		{"memcached://cache1", `server "cache1"`},
		{"memcached://cache1:11211,", `server ""`},
		{"memcached://:11211", `server ":11211"`},
		{"memcached://cache1:0", `server "cache1:0"`},
		{"memcached://cache1:70000", `server "cache1:70000"`},
		{"memcached://user:secret@cache1:11211", "no user"},
		{"memcached://cache1:11211?timeout=5", "timeout=5"},
		{"memcached://cache1:11211?timeout=-1s", "timeout=-1s"},
		{"memcached://cache1:11211?max_idle=0", "max_idle=0"},
		{"memcached://cache1:11211?max_idle=many", "max_idle=many"},
		{"memcached://cache1:11211?timout=1s", "unknown option timout: valid are timeout, max_idle"},
		{"memcached://cache1:11211?timeout=1s&timeout=2s", "timeout is given twice"},
		{"memcached://cache1:11211?timeout=%zz", "invalid URL escape"},
	} {
		b, err := kvadapter.Open(test.spec)
		if err == nil {
			b.Close()
			t.Errorf("%s: accepted", test.spec)
		} else if !strings.Contains(err.Error(), test.want) || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %q lacks %q", test.spec, err, test.want)
		}
	}
}

func TestMemcachedHoldsToBackend(t *testing.T) {
	_, addr := startMemcached(t, "-m", "512") // for all that the suite puts: what is evicted would be missed
	storetest.Run(t, func(t *testing.T) kvadapter.Backend {
		b, err := kvadapter.Open("memcached://" + addr + "?timeout=10s")
		if err != nil {
			t.Fatal(err)
		}
		return b
	}, storetest.Options{MaxValue: 900 << 10}) // memcached counts key and header in its 1 MiB
}

func TestMemcachedPutGetDelete(t *testing.T) {
	_, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s")
	keys := []string{"a", "", "a b", "a\r\nb", "\x00\x01", "\xff", "\xfe", "é", strings.Repeat("k", 250), strings.Repeat("\x7f", 250)}
	for i, key := range keys {
		mustPut(t, b, key, mrec(attune.Version(i+1), "value of "+key))
	}
	for i, key := range keys {
		mustGet(t, b, key, mrec(attune.Version(i+1), "value of "+key))
	}
	for _, key := range keys {
		for range 2 { // a key that has no record is no error
			if err := b.Delete(t.Context(), mkey(key)); err != nil {
				t.Fatalf("delete %q: %v", key, err)
			}
		}
		mustMiss(t, b, key)
	}
	mustPut(t, b, "kept", mrec(1, "v"))
	if err := b.Delete(t.Context(), attune.Key{Hash: mkey("kept").Hash}); err != nil {
		t.Fatal(err)
	}
	mustGet(t, b, "kept", mrec(1, "v"))
}

func TestMemcachedGetFillsTheBuffer(t *testing.T) {
	_, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s")
	mustPut(t, b, "k", mrec(1, "value"))
	buf := make([]byte, 3, 64)
	got, err := b.Get(t.Context(), mkey("k"), buf)
	if err != nil || string(got.Value) != "value" || &got.Value[0] != &buf[0] {
		t.Fatalf("got %q, %v, in the buffer: %v", got.Value, err, &got.Value[0] == &buf[0])
	}
	mustPut(t, b, "empty", mrec(2, ""))
	if got, err = b.Get(t.Context(), mkey("empty"), nil); err != nil || got.Value == nil || len(got.Value) != 0 {
		t.Fatalf("empty value: got %#v, %v", got.Value, err)
	}
}

func TestMemcachedForeignBytesAreAMiss(t *testing.T) {
	_, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s")
	other := memcache.New(addr)
	defer other.Close()

	mustPut(t, b, "ours", mrec(1, "value"))
	item, err := other.Get("ours")
	if err != nil {
		t.Fatal(err)
	}
	ours := item.Value
	altered := func(at int) []byte {
		raw := bytes.Clone(ours)
		raw[at] ^= 0x80
		return raw
	}
	for name, raw := range map[string][]byte{
		"text":            []byte("a value that some other client wrote"),
		"empty":           {},
		"short":           []byte("short"),
		"truncated stamp": ours[:15],
		"wrong magic":     altered(0),
		"wrong format":    altered(2),
		"wrong flags":     altered(3),
	} {
		if err := other.Set(&memcache.Item{Key: "k", Value: raw}); err != nil {
			t.Fatal(err)
		}
		before := mstat(t, b, "server_0_foreign")
		if got, err := b.Get(t.Context(), mkey("k"), nil); !errors.Is(err, kvadapter.ErrNotFound) {
			t.Errorf("%s: got %q, %v; want ErrNotFound", name, got.Value, err)
		}
		if recs, errs := multi(t.Context(), b, "k"); !errors.Is(errs[0], kvadapter.ErrNotFound) || recs[0].Value != nil {
			t.Errorf("%s: multi: got %q, %v; want a miss", name, recs[0].Value, errs[0])
		}
		if n := mstat(t, b, "server_0_foreign") - before; n != 2 {
			t.Errorf("%s: %d counted as foreign, want 2", name, n)
		}
	}
	// Another generation is the caller's to judge.
	rec := kvadapter.Record{Stamp: kvadapter.Stamp{Gen: 1 << 31, Version: 1<<64 - 2}, Value: []byte("v")}
	mustPut(t, b, "k", rec)
	mustGet(t, b, "k", rec)
}

func TestMemcachedPlacementIsThatOfServerList(t *testing.T) {
	var addrs []string
	for range 3 {
		_, addr := startMemcached(t)
		addrs = append(addrs, addr)
	}
	addrs = append(addrs, addrs[0]) // twice the weight
	b := openMemcached(t, strings.Join(addrs, ","), "?timeout=10s")
	other := memcache.New(addrs...)
	defer other.Close()
	for i := range 60 {
		key := fmt.Sprintf("key-%d", i)
		mustPut(t, b, key, mrec(1, "v"))
		if item, err := other.Get(key); err != nil || len(item.Value) != 17 {
			t.Fatalf("gomemcache does not find %s where it looks: %v", key, err)
		}
	}
	for i, addr := range addrs[:3] {
		if n := mstat(t, b, fmt.Sprintf("server_%d_puts", i)); n == 0 {
			t.Errorf("no key on %s", addr)
		}
	}
}

func TestMemcachedGetMulti(t *testing.T) {
	_, one := startMemcached(t)
	_, two := startMemcached(t)
	b := openMemcached(t, one+","+two, "?timeout=10s")
	var keys []string
	want := make(map[int]kvadapter.Record)
	for i := range 450 { // some batches for each server
		text := fmt.Sprintf("key %d", i) // hashed
		if i%2 == 0 {
			text = fmt.Sprintf("key-%d", i)
		}
		keys = append(keys, text)
		if i%3 != 0 {
			want[i] = mrec(attune.Version(i), strings.Repeat("x", i%7))
			mustPut(t, b, text, want[i])
		}
	}
	keys, want[len(keys)] = append(keys, keys[1]), want[1]
	recs, errs := multi(t.Context(), b, keys...)
	for i, got := range recs {
		w, ok := want[i]
		if ok && errs[i] != nil || !ok && !errors.Is(errs[i], kvadapter.ErrNotFound) || got.Stamp != w.Stamp || !bytes.Equal(got.Value, w.Value) {
			t.Errorf("%q: got %v %q %v, want %v %q", keys[i], got.Stamp, got.Value, errs[i], w.Stamp, w.Value)
		}
	}
}

func TestMemcachedLargeValues(t *testing.T) {
	_, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=5s")
	for _, size := range []int{kvadapter.Large - 1, kvadapter.Large, 900 << 10} {
		rec := mrec(1, strings.Repeat("0123456789abcdef", size/16+1)[:size])
		mustPut(t, b, "k", rec)
		mustGet(t, b, "k", rec)
	}
	err := b.Put(t.Context(), mkey("k"), mrec(2, strings.Repeat("x", 1<<20)))
	mustFail(t, err, kvadapter.ErrTooLarge, addr, "-I")
	mustMiss(t, b, "k") // memcached dropped what it had
	mustPut(t, b, "k", mrec(3, "v"))
	mustGet(t, b, "k", mrec(3, "v"))
}

func TestMemcachedFull(t *testing.T) {
	addr := attunetest.StartMemcached(t, "-M", "-m", "2").Addr
	b := openMemcached(t, addr, "?timeout=5s")
	var err error
	for i := range 1000 {
		if err = b.Put(t.Context(), mkey(fmt.Sprint(i)), mrec(1, strings.Repeat("x", 100<<10))); err != nil {
			break
		}
	}
	mustFail(t, err, kvadapter.ErrFull, addr, "-m")
}

func TestMemcachedUnixSocket(t *testing.T) {
	var socks []string
	for _, name := range []string{"a.sock", "b.sock"} {
		socks = append(socks, attunetest.StartMemcached(t, "-s", filepath.Join(t.TempDir(), name)).Addr)
	}
	b := openMemcached(t, strings.Join(socks, ","), "?timeout=10s")
	for i := range 20 {
		mustPut(t, b, fmt.Sprint(i), mrec(1, "v"))
		mustGet(t, b, fmt.Sprint(i), mrec(1, "v"))
	}
	if mstat(t, b, "server_0_puts") == 0 || mstat(t, b, "server_1_puts") == 0 {
		t.Error("one socket has it all")
	}
}

func TestMemcachedContext(t *testing.T) {
	server, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=1s&max_idle=1")
	cause := errors.New("drained")
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(cause)
	_, getErr := b.Get(ended, mkey("k"), nil)
	_, multiErrs := multi(ended, b, "k")
	for verb, err := range map[string]error{
		"get":    getErr,
		"put":    b.Put(ended, mkey("k"), mrec(1, "v")),
		"delete": b.Delete(ended, mkey("k")),
		"multi":  multiErrs[0],
	} {
		if !errors.Is(err, cause) {
			t.Errorf("%s: got %v, want the cause", verb, err)
		}
	}
	mustMiss(t, b, "k") // nothing was sent

	// The only connection is taken by a call that hangs; the next call waits for
	// it, no longer than its context.
	server.Pause()
	var wg sync.WaitGroup
	wg.Go(func() {
		if _, err := b.Get(t.Context(), mkey("k"), nil); !errors.Is(err, kvadapter.ErrUnavailable) {
			t.Errorf("hung: got %v", err)
		}
	})
	for end := time.Now().Add(slack); mstat(t, b, "server_0_busy") == 0; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("no call is on its way")
		}
	}
	waiting, cancel := context.WithCancelCause(t.Context())
	timer := time.AfterFunc(50*time.Millisecond, func() { cancel(cause) })
	defer timer.Stop()
	start := time.Now()
	if _, err := b.Get(waiting, mkey("k"), nil); !errors.Is(err, cause) || time.Since(start) > time.Second {
		t.Errorf("waiting: got %v after %v", err, time.Since(start))
	}
	wg.Wait()
}

// TestMemcachedConnectionsAreBounded has many more callers than connections.
func TestMemcachedConnectionsAreBounded(t *testing.T) {
	_, addr := startMemcached(t)
	b := openMemcached(t, addr, "?timeout=10s&max_idle=4")
	var wg sync.WaitGroup
	for i := range 100 {
		wg.Go(func() {
			for range 10 {
				if err := b.Put(t.Context(), mkey(fmt.Sprint(i)), mrec(1, "v")); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := mstat(t, b, "server_0_dials"); n < 1 || n > 4 {
		t.Errorf("%d connections, want 1 to 4", n)
	}
}

// TestMemcachedConcurrent checks that calls side by side never see each other's
// bytes: a value tells its key and its version.
func TestMemcachedConcurrent(t *testing.T) {
	_, one := startMemcached(t)
	_, two := startMemcached(t)
	b := openMemcached(t, one+","+two, "?timeout=10s")
	value := func(key int, v attune.Version) []byte {
		raw := binary.LittleEndian.AppendUint64(nil, uint64(key))
		raw = binary.LittleEndian.AppendUint64(raw, uint64(v))
		return bytes.Repeat(raw, 1+int(v)%200)
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			buf := make([]byte, 0, 4096)
			for i := range 200 {
				k := (g + i) % 10
				key := mkey(fmt.Sprint(k))
				v := attune.Version(g*1000 + i)
				if err := b.Put(t.Context(), key, kvadapter.Record{Stamp: kvadapter.Stamp{Version: v}, Value: value(k, v)}); err != nil {
					t.Error(err)
					return
				}
				got, err := b.Get(t.Context(), key, buf)
				if err != nil || !bytes.Equal(got.Value, value(k, got.Stamp.Version)) {
					t.Errorf("key %d: %d bytes of another record, %v", k, len(got.Value), err)
					return
				}
				if i%20 == 0 {
					recs, errs := multi(t.Context(), b, "0", "1")
					for k, got := range recs {
						if errs[k] == nil && !bytes.Equal(got.Value, value(k, got.Stamp.Version)) ||
							errs[k] != nil && !errors.Is(errs[k], kvadapter.ErrNotFound) {
							t.Errorf("key %d: bytes of another record, or %v", k, errs[k])
						}
					}
				}
			}
		})
	}
	wg.Wait()
}
