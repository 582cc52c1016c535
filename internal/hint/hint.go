// Package hint attaches remedies to errors.
//
// An error message says what is wrong and where. What the user can do about it
// is a hint: it travels beside the message, is not part of Error(), and only
// the command line prints it.
package hint

import "errors"

type hinted struct {
	error
	hint string
}

func (h *hinted) Unwrap() error { return h.error }

// With returns err carrying a remedy, or nil if err is nil. The remedy is a
// whole sentence without a final period.
func With(err error, remedy string) error {
	if err == nil {
		return nil
	}
	return &hinted{err, remedy}
}

// Of returns the remedies that err and the errors it wraps carry, outermost
// first and without doubles.
func Of(err error) []string {
	var out []string
	seen := map[string]bool{}
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		if h, ok := err.(*hinted); ok && !seen[h.hint] {
			seen[h.hint] = true
			out = append(out, h.hint)
		}
		switch u := err.(type) {
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				walk(e)
			}
		default:
			walk(errors.Unwrap(err))
		}
	}
	walk(err)
	return out
}
