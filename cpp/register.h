// Which copy of the library registers, and the names it registers under.
#pragma once

namespace hypatia {

// False in a second copy of the library (another path, same process), which
// then leaves the operators to the first: registering twice would abort.
bool registers_operators();

}  // namespace hypatia
