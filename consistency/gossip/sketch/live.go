package sketch

// Live is the first cells of a set that changes all the time, as the states of a
// store's keys do. An item is a key and the mark of its state, which is not 0.
//
// Cell 0 is always up to date. The way through the others, most of what a change
// costs, is put off until they are asked for, or until another key needs the
// place. So a key that is overwritten over and over pays for its first and its
// last state only.
//
// A Live has no lock: using it is for one goroutine at a time.
type Live struct {
	secret   Secret
	cells    []Cell
	deferred []deferred // a key's place is by its last bits
}

// deferred says that in the cells above 0 the mark of a key is still was.
type deferred struct {
	key, was, is uint64
	sum          uint64 // of is
}

// There are about as many places as keys, within these bounds: 2 to 512 KiB.
const (
	leastDeferred = 1 << 6
	mostDeferred  = 1 << 14
)

// NewLive returns cells 0 to cells-1 of the empty set. It panics unless there is
// one at least, and [MaxCells] at most.
func NewLive(secret Secret, cells int) *Live {
	l := &Live{secret: secret, cells: New(secret, 0, cells).cells, deferred: make([]deferred, leastDeferred)}
	_ = l.cells[0]
	return l
}

// Replace takes out key with mark was and puts in key with mark is; 0 is none.
// As with [Sketch.Insert], nothing decodes any more if that is not what was there.
func (l *Live) Replace(key, was, is uint64) {
	d := l.place(key)
	if d.key != key || d.is != was {
		if n := len(l.deferred); n < mostDeferred && l.cells[0].Count > int64(n) {
			l.Cells()
			l.deferred = make([]deferred, 2*n)
			d = l.place(key)
		}
		l.settle(d)
		*d = deferred{key: key, was: was, is: was, sum: l.secret.sum(Item{key, was})}
	}
	if was != 0 {
		l.cells[0].add(Item{key, was}, d.sum, -1)
	}
	d.is = is
	if is != 0 {
		d.sum = l.secret.sum(Item{key, is})
		l.cells[0].add(Item{key, is}, d.sum, 1)
	}
}

// Total is cell 0. It costs nothing, and equal ones are of equal sets.
func (l *Live) Total() Cell { return l.cells[0] }

// Cells are all of them, as those of a [Sketch].
func (l *Live) Cells() []Cell {
	for i := range l.deferred {
		l.settle(&l.deferred[i])
	}
	return l.cells
}

func (l *Live) place(key uint64) *deferred {
	return &l.deferred[key&uint64(len(l.deferred)-1)]
}

func (l *Live) settle(d *deferred) {
	if d.was == d.is {
		return
	}
	if d.was != 0 {
		l.spread(Item{d.key, d.was}, l.secret.sum(Item{d.key, d.was}), -1)
	}
	if d.is != 0 {
		l.spread(Item{d.key, d.is}, d.sum, 1)
	}
	d.was = d.is
}

// spread adds n to all cells of an item but cell 0.
func (l *Live) spread(it Item, sum uint64, n int64) {
	for w := start(sum).next(); w.at < uint64(len(l.cells)); w = w.next() {
		l.cells[w.at].add(it, sum, n)
	}
}
