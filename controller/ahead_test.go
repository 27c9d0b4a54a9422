package controller

import (
	"fmt"
	"strings"
	"testing"

	"github.com/attunekv/attune/internal/attunetest"
)

// Pipelined reads that are fetched ahead in several rounds, because some count
// as uses and some do not, each get their own key's value.
func TestReadsFetchedAheadKeepTheirKeys(t *testing.T) {
	m := attunetest.StartMemcached(t)
	cfg := testConfig()
	cfg.Backend = "memcached://" + m.Addr
	c := dial(t, start(t, cfg))
	var ask, want strings.Builder
	for i := range batchSize {
		c.set(fmt.Sprint("k", i), []byte(fmt.Sprint("v", i)))
		quiet := ""
		if i%2 == 1 || i%7 == 0 {
			quiet = " u"
		}
		fmt.Fprintf(&ask, "mg k%d k v%s\r\n", i, quiet)
		fmt.Fprintf(&want, "VA %d kk%d\r\nv%d\r\n", len(fmt.Sprint("v", i)), i, i)
	}
	c.ask(ask.String(), want.String())
}
