package protocol_test

import (
	"errors"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/attunekv/attune"
)

var rewrite = flag.Bool("rewrite", false, "rewrite testdata/text_*.txt and meta_*.txt from what the parser does")

// storyMaxItem is the largest value in the stories.
const storyMaxItem = 64

// A paragraph of a story is one connection: what the client sends (>), the
// results its operations have (=), and what comes of it, which -rewrite
// rewrites: each request as the parser understood it, and its reply (<).
type paragraph struct {
	comments, sent, results, outcome []string
}

func (p *paragraph) String() string {
	lines := append([]string(nil), p.comments...)
	for _, s := range p.sent {
		lines = append(lines, "> "+s)
	}
	for _, s := range p.results {
		lines = append(lines, "= "+s)
	}
	return strings.Join(append(lines, p.outcome...), "\n") + "\n"
}

// bytes is what the client sends.
func (p *paragraph) bytes(t *testing.T) []byte {
	t.Helper()
	s, err := strconv.Unquote(`"` + strings.ReplaceAll(strings.Join(p.sent, ""), `"`, `\"`) + `"`)
	if err != nil {
		t.Fatalf("%s: %v", p.sent, err)
	}
	return []byte(s)
}

// answers returns a source of p's results, in order.
func (p *paragraph) answers(t *testing.T) func(*attune.Op) attune.Result {
	next := 0
	return func(*attune.Op) attune.Result {
		if next == len(p.results) {
			t.Fatalf("%q has more operations than results", p.sent)
		}
		next++
		return parseResult(t, p.results[next-1])
	}
}

var statusNames = map[string]attune.Status{
	"hit": attune.Hit, "miss": attune.Miss, "stored": attune.Stored, "notstored": attune.NotStored,
	"exists": attune.Exists, "notfound": attune.NotFound, "deleted": attune.Deleted, "touched": attune.Touched,
	"counted": attune.Counted, "flushed": attune.Flushed, "nonnumeric": attune.NonNumeric,
	"toolarge": attune.TooLarge, "outofmemory": attune.OutOfMemory, "failed": attune.Failed,
}

// parseResult reads a status and what is not zero in the result: value=hello
// ttl=30 (seconds left) idle=5 (seconds since use) won ...
func parseResult(t *testing.T, line string) (res attune.Result) {
	t.Helper()
	words := strings.Fields(line)
	var known bool
	if res.Status, known = statusNames[words[0]]; !known {
		t.Fatalf("no status %q", words[0])
	}
	it := &res.Item
	it.Accessed = textNow / 1000
	had := "" // before=, the seconds that were left before, where that differs
	for _, w := range words[1:] {
		name, arg, _ := strings.Cut(w, "=")
		v, _ := strconv.ParseUint(arg, 10, 64)
		switch name {
		case "value":
			it.Value, it.Size = []byte(arg), len(arg)
		case "size":
			it.Size = int(v)
		case "flags":
			it.Flags = uint32(v)
		case "cas":
			it.CAS = v
		case "number":
			res.Number = v
		case "ttl":
			it.Expires = textNow + int64(v)*1000
		case "before":
			had = arg
		case "idle":
			it.Accessed -= int64(v)
		case "fetched":
			it.Fetched = true
		case "absent":
			res.Absent = true
		case "won":
			res.Won = true
		case "stale":
			res.Stale = true
		case "taken":
			res.Taken = true
		case "error":
			res.Err = errors.New(strings.ReplaceAll(arg, "_", " "))
		default:
			t.Fatalf("no field %q in a result", name)
		}
	}
	if v, err := strconv.ParseInt(had, 10, 64); err == nil {
		res.Before = textNow + v*1000
	} else if !res.Absent {
		res.Before = it.Expires
	}
	return res
}

func readStory(t *testing.T, path string) (story []*paragraph) {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range strings.Split(strings.TrimSpace(string(b)), "\n\n") {
		p := &paragraph{}
		for _, line := range strings.Split(text, "\n") {
			switch {
			case strings.HasPrefix(line, "#"):
				p.comments = append(p.comments, line)
			case strings.HasPrefix(line, "> "):
				p.sent = append(p.sent, line[2:])
			case strings.HasPrefix(line, "= "):
				p.results = append(p.results, line[2:])
			default:
				p.outcome = append(p.outcome, line)
			}
		}
		story = append(story, p)
	}
	return story
}

func storyFiles(t *testing.T) (files []string) {
	t.Helper()
	for _, pattern := range []string{"testdata/text_*.txt", "testdata/meta_*.txt"} {
		found, err := filepath.Glob(pattern)
		if err != nil || len(found) == 0 {
			t.Fatalf("no stories in %s: %v", pattern, err)
		}
		files = append(files, found...)
	}
	return files
}

func TestTextStories(t *testing.T) {
	for _, path := range storyFiles(t) {
		t.Run(filepath.Base(path), func(t *testing.T) {
			var rewritten []string
			for _, p := range readStory(t, path) {
				used := 0
				answers := p.answers(t)
				s := newTextSession(storyMaxItem, func(op *attune.Op) attune.Result {
					used++
					return answers(op)
				})
				if len(p.sent) > 0 {
					s.feed(t, p.bytes(t))
				}
				if used != len(p.results) {
					t.Errorf("%q: %d of %d results used", p.sent, used, len(p.results))
				}
				want := p.String()
				p.outcome = s.log
				got := p.String()
				if got != want && !*rewrite {
					t.Errorf("told:\n%s\nhappened:\n%s", want, got)
				}
				rewritten = append(rewritten, got)
			}
			if *rewrite {
				if err := os.WriteFile(path, []byte(strings.Join(rewritten, "\n")), 0o644); err != nil {
					t.Fatal(err)
				}
			}
		})
	}
}

// TestTextStoriesSplit tells every story in all ways it may come off the wire.
func TestTextStoriesSplit(t *testing.T) {
	for _, path := range storyFiles(t) {
		for _, p := range readStory(t, path) {
			if len(p.sent) > 0 {
				data := p.bytes(t)
				checkSplits(t, data, storyMaxItem, len(data), func() func(*attune.Op) attune.Result { return p.answers(t) })
			}
		}
	}
}
