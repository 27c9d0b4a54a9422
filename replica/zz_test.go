package replica
import ("testing";"fmt")
func TestZZ(t *testing.T) {
	m := newMemory()
	c := &cache{r: Open(Options{Backend: m, MemoryLimit: 4 << 20})}
	for i := 0; i < 4_000_000; i++ {
		c.read(fmt.Sprint("fill", i))
		if i % 800_000 == 0 { st := c.r.Stats(); pages:=0; for j := range c.r.segs { pages += len(c.r.segs[j].pages) }; t.Log(st.Items, st.IndexBytes, m.used, pages) }
	}
}
