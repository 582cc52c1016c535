package hint

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"testing"
)

func TestHintsTravelBesideTheMessage(t *testing.T) {
	inner := With(fs.ErrNotExist, "make it")
	err := With(fmt.Errorf("open x: %w", errors.Join(inner, With(errors.New("y"), "make it"), With(errors.New("z"), "stop"))), "look again")
	if got, want := Of(err), []string{"look again", "make it", "stop"}; !slices.Equal(got, want) {
		t.Errorf("Of = %q, want %q", got, want)
	}
	if err.Error() != "open x: file does not exist\ny\nz" {
		t.Errorf("the message is %q", err)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		t.Error("the cause is lost")
	}
	if With(nil, "x") != nil || Of(nil) != nil || Of(errors.New("x")) != nil {
		t.Error("a hint out of nothing")
	}
}
