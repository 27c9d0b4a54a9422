package attune_test

import (
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/attunekv/attune"

// allowed says which packages of this module each package may import. It is the
// tree of docs/design.md: imports go down only, and siblings never import each
// other. A new line here is a decision about the design.
var allowed = map[string][]string{
	"": {}, // the words: everything may import them, they import nothing

	"protocol":            {""},
	"kvadapter":           {"", "internal/prefetch", "internal/rawio", "internal/room"},
	"kvadapter/storetest": {"", "kvadapter"},
	"replica":             {"", "kvadapter", "internal/prefetch"},
	"cluster":             {"internal/rawio"}, // it carries frames, and does not know what is in them
	"consistency/gossip":  {"", "kvadapter", "replica", "cluster", "consistency/codec", "consistency/repair", "consistency/disk", "consistency/gossip/sketch", "consistency/gossip/journal"},
	"consistency/ordered": {"", "kvadapter", "replica", "cluster", "consistency/codec", "consistency/repair", "consistency/disk", "consistency/ordered/raftlog"},
	"consistency":         {"", "replica", "cluster", "consistency/disk", "consistency/repair", "consistency/gossip", "consistency/ordered"},
	"controller":          {"", "protocol", "consistency", "replica", "kvadapter", "cluster", "internal/rawio", "internal/room", "internal/snapshot", "internal/otlp"},

	"consistency/codec":           {""},
	"consistency/repair":          {"", "kvadapter", "replica", "cluster"},
	"consistency/gossip/sketch":   {},
	"consistency/disk":            {},
	"consistency/disk/disktest":   {"consistency/disk"}, // for tests only
	"consistency/gossip/journal":  {"consistency/disk"},
	"consistency/ordered/raftlog": {"consistency/disk"},

	// The client side knows the server only by the wire.
	"client":                  {},
	"client/internal/memtest": {},
	"client/admin":            {},
	"client/shell":            {"client", "client/admin"},
	"internal/bench":          {},
	"internal/prefetch":       {},
	"internal/snapshot":       {},
	"internal/otlp":           {""},
	"internal/room":           {},
	"internal/rawio":          {},
	"internal/history":        {},
	"internal/history/broken": {"internal/history"},
	"internal/testbed":        {},
	"internal/verify":         {"internal/history", "internal/history/broken", "internal/testbed"},
	"internal/attunetest":     {"internal/testbed"}, // for tests only

	"cmd/attune": {"client", "client/admin", "client/shell", "consistency", "controller", "internal/bench", "internal/snapshot", "internal/verify"},
	// What people read to write their own: they import what those could.
	"docs/examples/lock":    {"client"},
	"docs/examples/counter": {"client"},
	"docs/examples/session": {"client"},
	"docs/examples/feed":    {"client"},
}

// standardOnly are the packages that import nothing from outside the module and
// the standard library.
var standardOnly = []string{"", "protocol", "client/internal/memtest", "internal/testbed", "internal/attunetest", "internal/snapshot", "internal/otlp"}

// TestImportsGoDownOnly reads every file that is not a test, for any platform.
func TestImportsGoDownOnly(t *testing.T) {
	seen := make(map[string]bool)
	err := filepath.WalkDir(".", func(file string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && file != "." && (strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
			return filepath.SkipDir
		}
		if d.IsDir() || !strings.HasSuffix(file, ".go") || strings.HasSuffix(file, "_test.go") {
			return nil
		}
		pkg := path.Dir(filepath.ToSlash(file))
		if pkg == "." {
			pkg = ""
		}
		seen[pkg] = true
		f, err := parser.ParseFile(token.NewFileSet(), file, nil, parser.ImportsOnly)
		if err != nil {
			return err
		}
		for _, spec := range f.Imports {
			name, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				return err
			}
			if why := refuse(pkg, name); why != "" {
				t.Errorf("%s imports %s: %s", file, name, why)
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range slices.Sorted(maps.Keys(allowed)) {
		if !seen[pkg] {
			t.Errorf("the table allows imports to %q, which is no package", pkg)
		}
	}
}

// refuse says why pkg may not import name, or "".
func refuse(pkg, name string) string {
	first, _, _ := strings.Cut(name, "/")
	switch inside := strings.TrimPrefix(strings.TrimPrefix(name, module), "/"); {
	case name == "C":
		return "no package uses cgo"
	case name == module || strings.HasPrefix(name, module+"/"):
		may, ok := allowed[pkg]
		if !ok {
			return "the table of this test does not have package " + strconv.Quote(pkg)
		}
		if !slices.Contains(may, inside) {
			return "the table of this test does not allow it"
		}
	case strings.Contains(first, ".") && slices.Contains(standardOnly, pkg):
		return "this package has no dependencies"
	}
	return ""
}

func TestRefuseTellsWhatIsAllowed(t *testing.T) {
	for _, c := range []struct {
		pkg, name string
		ok        bool
	}{
		{"controller", module + "/protocol", true},
		{"protocol", module, true},
		{"client", "github.com/bradfitz/gomemcache/memcache", true},
		{"protocol", "bytes", true},
		{"protocol", module + "/controller", false},            // up
		{"protocol", module + "/kvadapter", false},             // a sibling
		{"consistency/gossip", module + "/consistency", false}, // its interface, which it satisfies without
		{"", module + "/protocol", false},
		{"", "golang.org/x/sys/unix", false},
		{"newcomer", module, false},
		{"replica", "C", false},
	} {
		if why := refuse(c.pkg, c.name); (why == "") != c.ok {
			t.Errorf("%q imports %q: refused %q, want allowed %v", c.pkg, c.name, why, c.ok)
		}
	}
}

// TestDesignPageDrawsThePackages keeps the tree of docs/design.md complete.
func TestDesignPageDrawsThePackages(t *testing.T) {
	page, err := os.ReadFile("docs/design.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, pkg := range slices.Sorted(maps.Keys(allowed)) {
		name := path.Base(pkg)
		switch pkg {
		case "":
			name = "attune"
		case "cmd/attune", "internal/bench", "internal/history", "internal/testbed", "internal/verify", "internal/attunetest":
			name = pkg
		case "client/internal/memtest": // a helper of tests
			continue
		case "client/shell", "kvadapter/storetest", "consistency/disk/disktest", "internal/history/broken": // in the line of their parent
			name = path.Base(path.Dir(pkg))
		}
		if strings.HasPrefix(pkg, "docs/examples/") {
			name = "docs/examples"
		}
		if !strings.Contains(string(page), name+"/ ") {
			t.Errorf("the tree of docs/design.md does not have %s/", name)
		}
	}
}
