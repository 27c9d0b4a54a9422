package faults

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"image"
	"image/color"
	"image/draw"
	"image/png"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"

	"github.com/attunekv/attune/internal/attunetest"
)

// screenshots is the directory that the tests of the page put pictures into, for which
// they run for some minutes: make screenshots. Empty: they take none, and are quick.
var screenshots = os.Getenv("ATTUNE_SCREENSHOTS")

// browser is a headless Chromium with one tab.
type browser struct {
	t   *testing.T
	ctx context.Context

	mu     sync.Mutex
	faults []string // what it complained of
}

func newBrowser(t *testing.T) *browser {
	t.Helper()
	path := ""
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome"} {
		if found, err := exec.LookPath(name); err == nil {
			path = found
			break
		}
	}
	if path == "" {
		t.Skip("needs a browser; Debian: apt-get install chromium")
	}
	options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(path), chromedp.DisableGPU)
	if os.Getuid() == 0 {
		options = append(options, chromedp.NoSandbox) // else it refuses
	}
	ctx, cancel := chromedp.NewExecAllocator(context.Background(), options...)
	t.Cleanup(cancel)
	b := &browser{t: t}
	b.ctx, cancel = chromedp.NewContext(ctx)
	t.Cleanup(cancel)
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(1280, 900)); err != nil {
		t.Fatal(err)
	}
	if err := chromedp.Listen(b.ctx, b.hear); err != nil {
		t.Fatal(err)
	}
	if _, err := chromedp.Call(b.ctx, log.Enable, struct{}{}); err != nil {
		t.Fatal(err)
	}
	return b
}

// hear notes scripts that fail, and what the page's policy or the network refused.
func (b *browser) hear(event any) {
	b.mu.Lock()
	defer b.mu.Unlock()
	switch e := event.(type) {
	case *runtime.EventExceptionThrown:
		b.faults = append(b.faults, fmt.Sprintf("exception: %+v", e.ExceptionDetails.Exception))
	case *log.EventEntryAdded:
		b.faults = append(b.faults, fmt.Sprintf("%s: %s", e.Entry.Level, e.Entry.Text))
	}
}

// clean fails the test over what the browser complained of.
func (b *browser) clean() {
	b.t.Helper()
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, f := range b.faults {
		b.t.Error("the browser says: ", f)
	}
}

func (b *browser) open(admin string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, attunetest.Patience)
	defer cancel()
	if err := chromedp.Do(ctx, chromedp.Navigate("http://"+admin+"/")); err != nil {
		b.t.Fatal(err)
	}
}

// shows waits until an expression of the page is true.
func (b *browser) shows(expression string) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, attunetest.Patience)
	defer cancel()
	if _, err := chromedp.Run(ctx, chromedp.Poll[bool](expression, chromedp.WithPollingInterval(100*time.Millisecond), chromedp.WithPollingTimeout(attunetest.Patience))); err != nil {
		have, _ := chromedp.Run(b.ctx, chromedp.Evaluate[string]("document.body.innerText"))
		b.t.Fatalf("the page does not come to %s: %v\n%s", expression, err, have)
	}
}

func (b *browser) number(expression string) float64 {
	b.t.Helper()
	v, err := chromedp.Run(b.ctx, chromedp.Evaluate[float64](expression))
	if err != nil {
		b.t.Fatal(err)
	}
	return v
}

// prefers has the page in the dark, or in the light.
func (b *browser) prefers(scheme string) {
	b.t.Helper()
	if _, err := chromedp.Call(b.ctx, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{
		Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}},
	}); err != nil {
		b.t.Fatal(err)
	}
}

// picture writes what the page looks like to a file, if pictures are taken.
func (b *browser) picture(name string) {
	b.t.Helper()
	if screenshots != "" {
		b.pictureOf(name, 1200)
	}
}

func (b *browser) pictureOf(name string, high int64) {
	b.t.Helper()
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(1280, high)); err != nil {
		b.t.Fatal(err)
	}
	raw, err := chromedp.Run(b.ctx, chromedp.CaptureScreenshot())
	if err != nil {
		b.t.Fatal(err)
	}
	img, err := png.Decode(bytes.NewReader(raw))
	if err != nil {
		b.t.Fatal(err)
	}
	var small bytes.Buffer
	if err := (&png.Encoder{CompressionLevel: png.BestCompression}).Encode(&small, palette(img)); err != nil {
		b.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(screenshots, name), small.Bytes(), 0o644); err != nil {
		b.t.Fatal(err)
	}
	b.t.Logf("%s: %d bytes", name, small.Len())
}

// load has clients read and write until the test ends, if pictures are taken, and
// returns when there is something to be seen.
func load(t *testing.T, nodes []*attunetest.Controller) {
	if screenshots == "" {
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	var clients sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		clients.Wait()
	})
	began := time.Now()
	for i, n := range nodes {
		c := memcache.New(n.Listen)
		c.Timeout = 2 * time.Second
		clients.Go(func() {
			defer c.Close()
			for k := 0; ctx.Err() == nil; k++ {
				key := fmt.Sprint("key", k*7919%3000)
				_, err := c.Get(key)
				if k%10 == 0 || err == memcache.ErrCacheMiss {
					_ = c.Set(&memcache.Item{Key: key, Value: make([]byte, 200), Expiration: 60}) // it fails once its controller is dead
				}
				time.Sleep(time.Duration(2+k/500%3+i) * time.Millisecond)
			}
		})
	}
	time.Sleep(4*time.Minute - time.Since(began))
}

// state is an expression: the controller of that name is shown so.
func state(name, word string) string {
	return fmt.Sprintf(`document.querySelector('#controllers tr[data-node="%s"]')?.dataset.state === %q`, name, word)
}

// The page shows who is there, and who is not any more; in the light, in the dark, and
// on a phone; and the browser finds nothing wrong with it.
func TestPage(t *testing.T) {
	b := newBrowser(t)
	level := pick(linearizable, eventual)
	if screenshots != "" {
		level = linearizable
	}
	stores := level == eventual
	c := attunetest.StartCluster(t, attunetest.ClusterOptions{Level: level, Memcached: stores, Durable: stores})
	load(t, c.Nodes)
	b.open(c.Nodes[0].Admin)
	b.shows(`document.querySelectorAll('#controllers tbody tr').length === 3`)
	for _, n := range c.Nodes {
		b.shows(state(n.Name, "ready"))
	}
	b.shows(`document.getElementById('summary').textContent === '✓ All 3 controllers are ready.'`)
	b.shows(`document.querySelectorAll('#map circle').length === 3 && document.querySelectorAll('#map .link:not(.cut)').length === 3`)
	if level == linearizable {
		b.shows(`[...document.querySelectorAll('#controllers tbody tr')].filter((r) => r.cells[2].textContent === 'leader').length === 1`)
	}
	// The first samples are there after five seconds.
	b.shows(`document.querySelectorAll('#charts figure').length >= 3 && document.querySelectorAll('#charts path').length >= 9`)
	b.shows(`[...document.querySelectorAll('#events tbody tr')].some((r) => r.cells[3].textContent.startsWith('serving'))`)
	if stores {
		b.shows(`[...document.querySelectorAll('#stores tbody tr')].filter((r) => r.cells[2].textContent === '✓ up').length === 3`)
		b.shows(`document.querySelectorAll('#disks li').length === 3`)
		c.Nodes[1].Memcached.Kill()
		client := memcache.New(c.Nodes[1].Listen)
		defer client.Close()
		for i := range 10 { // a store that nobody asks is not known to be down
			_ = client.Set(&memcache.Item{Key: fmt.Sprint("lost", i), Value: []byte("v")})
		}
		b.shows(`[...document.querySelectorAll('#stores tbody tr')].filter((r) => r.cells[2].textContent === '✕ down').length === 1`)
		c.Nodes[1].Memcached.Start()
		b.shows(`[...document.querySelectorAll('#stores tbody tr')].filter((r) => r.cells[2].textContent === '✓ up').length === 3`)
	}
	b.picture("page.png")

	light := b.number(`parseInt(getComputedStyle(document.body).backgroundColor.slice(4))`)
	b.prefers("dark")
	if dark := b.number(`parseInt(getComputedStyle(document.body).backgroundColor.slice(4))`); dark >= light {
		t.Errorf("the page is no darker in the dark: %v, %v in the light", dark, light)
	}
	b.picture("page-dark.png")
	b.prefers("light")
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(375, 800, chromedp.EmulateMobile)); err != nil {
		t.Fatal(err)
	}
	if wide := b.number(`document.documentElement.scrollWidth`); wide > 375 {
		t.Errorf("on a phone the page is %v wide", wide)
	}
	if unnamed := b.number(`document.querySelectorAll('svg[role=img]:not([aria-label]), th:not([scope]), section:not([aria-labelledby])').length`); unnamed != 0 {
		t.Errorf("%v parts of the page have no name for who does not see them", unnamed)
	}
	if err := chromedp.Do(b.ctx, chromedp.EmulateViewport(1280, 900)); err != nil {
		t.Fatal(err)
	}

	c.Nodes[2].Kill()
	b.shows(state("n3", "failed"))
	b.shows(state("n2", "ready"))
	b.shows(`document.getElementById('summary').className === 'bad' && document.getElementById('summary').textContent.includes('n3: failed')`)
	b.shows(`[...document.querySelectorAll('#events tbody tr')].some((r) => r.cells[3].textContent.startsWith('a controller does not answer any more; name n3'))`)
	if screenshots != "" {
		time.Sleep(20 * time.Second)
	}
	b.picture("page-dead.png")
	b.clean()

	// The controller that was asked ends: the page says that what it shows is old.
	c.Nodes[0].Kill()
	b.shows(`document.body.classList.contains('stale') && document.getElementById('summary').textContent.includes('does not answer')`)
}

// palette is img in 256 of its own colours: a page has few, and a picture of it a
// quarter of the bytes.
func palette(img image.Image) image.Image {
	bounds := img.Bounds()
	often := make(map[color.Color]int)
	for y := bounds.Min.Y; y < bounds.Max.Y; y++ {
		for x := bounds.Min.X; x < bounds.Max.X; x++ {
			often[img.At(x, y)]++
		}
	}
	colours := slices.SortedFunc(maps.Keys(often), func(a, b color.Color) int { return cmp.Compare(often[b], often[a]) })
	flat := image.NewPaletted(bounds, colours[:min(len(colours), 256)])
	draw.Draw(flat, bounds, img, bounds.Min, draw.Src)
	return flat
}
