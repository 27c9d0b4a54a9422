package repair

// Status is how a store outside this process is, seen from here. All but Waiting, Behind
// and Fill count since the start.
type Status struct {
	Waiting int64 // bytes on their way to the store
	Behind  bool  // that is so much that writes wait: see [Stager.Behind], [Stager.Slow]
	Lost    int64 // values it did not take, or had no time for
	Asked   int64 // times that the others were asked for a value that is not here
	Found   int64 // of these, with success
	Fill    FillStatus
}

// StatusOf puts together what the parts know.
func StatusOf(s *Stager, f *Fetcher, fill *Filler) Status {
	return Status{
		Waiting: s.bytes.Load(), Behind: s.Behind() || s.Slow(), Lost: s.lost.Load(),
		Asked: f.asked.Load(), Found: f.found.Load(),
		Fill: fill.Status(),
	}
}
