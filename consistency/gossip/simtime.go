package gossip

import "time"

// simEvent is a frame that arrives, or else a call of fn.
type simEvent struct {
	at     time.Duration
	serial uint64
	node   *simNode // nil: nobody's, and always called
	life   int
	from   uint64
	kind   byte
	body   []byte
	fn     func()
}

// after has fn called d from now, whoever lives then.
func (s *simNet) after(d time.Duration, fn func()) { s.push(simEvent{at: s.now + d, fn: fn}) }

// later has fn called d from now if the node lives still; once it goes on, if it is
// paused.
func (n *simNode) later(d time.Duration, fn func()) {
	n.net.push(simEvent{at: n.net.now + d, node: n, life: n.life, fn: fn})
}

func (s *simNet) push(e simEvent) {
	s.serial++
	e.serial = s.serial
	s.events.push(e)
}

// run lets time pass.
func (s *simNet) run(d time.Duration) {
	end := s.now + d
	for len(s.events) > 0 && s.events[0].at <= end {
		e := s.events.pop()
		s.now = e.at
		n := e.node
		switch {
		case n == nil:
			e.fn()
		case n.life != e.life:
		case n.paused:
			n.backlog = append(n.backlog, e)
		case e.fn != nil:
			e.fn()
		default:
			n.deliver(&e)
		}
	}
	s.now = end
}

// until runs until ok, looking every step, and reports whether that came within d.
func (s *simNet) until(d, step time.Duration, ok func() bool) bool {
	for end := s.now + d; !ok(); s.run(step) {
		if s.now >= end {
			return false
		}
	}
	return true
}

func (n *simNode) deliver(e *simEvent) {
	s := n.net
	s.trace = mix(s.trace^uint64(e.at), n.id^e.from^uint64(e.kind)<<32^uint64(len(e.body)))
	n.received++
	if s.heard != nil && s.heard(n, e.from, e.kind, e.body) {
		return
	}
	n.core.frame(e.from, e.kind, e.body)
	n.watch()
}

// simEvents is a heap of four children each, by time and, of one moment, by who
// gets and sends it, so that it does not matter to whom a core sends first.
type simEvents []simEvent

func (h simEvents) less(i, j int) bool {
	a, b := &h[i], &h[j]
	if a.at != b.at {
		return a.at < b.at
	}
	if a.node != b.node && a.node != nil && b.node != nil {
		return a.node.slot < b.node.slot
	}
	if a.from != b.from {
		return a.from < b.from
	}
	return a.serial < b.serial
}

func (h *simEvents) push(e simEvent) {
	*h = append(*h, e)
	for i := len(*h) - 1; i > 0; {
		up := (i - 1) / 4
		if !h.less(i, up) {
			break
		}
		(*h)[i], (*h)[up] = (*h)[up], (*h)[i]
		i = up
	}
}

func (h *simEvents) pop() simEvent {
	top, last := (*h)[0], len(*h)-1
	(*h)[0] = (*h)[last]
	(*h)[last] = simEvent{}
	*h = (*h)[:last]
	for i := 0; ; {
		least := i
		for j := 4*i + 1; j <= 4*i+4 && j < last; j++ {
			if h.less(j, least) {
				least = j
			}
		}
		if least == i {
			return top
		}
		(*h)[i], (*h)[least] = (*h)[least], (*h)[i]
		i = least
	}
}
