"""General instructions with good short answers, by hand: the valid split (format: see instruction.read_responses)."""

TEXT = """
Q: Explain in one or two sentences why the sky is blue.
A: Sunlight is scattered by the molecules of the air, and blue light is scattered more than red light. That is why we
see blue light coming from every part of the sky.

Q: List three benefits of drinking enough water.
A: 1. It keeps your body temperature stable.
|2. It helps your kidneys remove waste.
|3. It can improve concentration and reduce headaches.

Q: Rewrite the sentence in the past tense.
I: She walks to school and talks to her friends.
A: She walked to school and talked to her friends.

Q: Summarize the text in one sentence.
I: The town library was closed for two months because of a water leak. It opened again on Monday, with new carpets and
longer hours.
A: After two months of repairs for a water leak, the town library has reopened with new carpets and longer hours.

Q: Write a short e-mail to a colleague to move a meeting from Monday to Tuesday.
A: Hi Sam,
|Could we move our meeting from Monday to Tuesday at the same time? Please let me know if that works for you.
|Best regards,
|Alex

Q: Classify the review as positive or negative.
I: The food was cold and the waiter was rude.
A: The review is negative, because the customer complains about cold food and a rude waiter.

Q: Extract the date from the text.
I: The conference will be held in Lisbon on 14 May 2023.
A: The date mentioned in the text is 14 May 2023, the day on which the conference will be held.

Q: Convert 3 kilometers to meters.
A: 3 kilometers are 3,000 meters, because one kilometer is 1,000 meters.

Q: How can I fall asleep more easily?
A: Go to bed at the same time every night, keep your bedroom dark and cool, and avoid screens and coffee in the last
hours before you sleep.

Q: Write a Python line that prints the numbers from 1 to 5.
A: You can use a for loop with range: `for i in range(1, 6): print(i)`. The upper limit 6 is not included.

Q: What is the difference between weather and climate?
A: Weather describes the conditions of the atmosphere at a particular time and place, while climate is the average
weather of a region over many years.

Q: Give me a synonym for each word.
I: happy, quick, brave
A: Happy: joyful
|Quick: fast
|Brave: courageous

Q: Correct the grammar of the sentence.
I: He don't like apples and she don't too.
A: The correct sentence is: "He doesn't like apples, and she doesn't either."

Q: Suggest a title for a story about a lost dog that finds its way home.
A: A good title would be "The Long Way Home", because it hints at both the journey and the happy ending.

Q: Translate the sentence into Spanish.
I: Where is the train station?
A: In Spanish, the sentence is: "¿Dónde está la estación de tren?"

Q: Describe a sunset in two sentences.
A: The sun sinks slowly toward the horizon and paints the clouds orange, pink, and gold. As the light fades, the sky
turns a deep blue and the first stars appear.

Q: What should I pack for a day hike?
A: Pack water, snacks, a map, a rain jacket, sunscreen, and a small first aid kit. Wear comfortable shoes that you
have already broken in.

Q: Who wrote Romeo and Juliet, and what is it about?
A: Romeo and Juliet was written by William Shakespeare. It tells the story of two young lovers whose families are
enemies.

Q: Explain what a metaphor is and give an example.
A: A metaphor describes one thing as if it were another. For example, "time is a thief" compares time to someone who
steals from us.

Q: Make this sentence more polite.
I: Give me the report now.
A: A more polite version is: "Could you please send me the report as soon as possible?"

Q: Sort the numbers from smallest to largest.
I: 42, 7, 19, 3
A: Sorted from smallest to largest, the numbers are 3, 7, 19, and 42.

Q: Name three renewable sources of energy.
A: Three renewable sources of energy are solar power, wind power, and hydropower.

Q: Write a haiku about autumn.
A: Red leaves drift and fall,
|a cold wind combs through the trees,
|the year holds its breath.

Q: How do I boil an egg?
A: Place the egg in a pot of boiling water and cook it for about seven minutes for a soft yolk or ten minutes for a
hard one. Then cool it in cold water and peel it.

Q: What is photosynthesis?
A: Photosynthesis is the process by which plants use sunlight, water, and carbon dioxide to make sugar and oxygen.

Q: Give one advantage and one disadvantage of working from home.
A: Advantage: you save the time and cost of commuting.
|Disadvantage: you may feel isolated from your colleagues.

Q: Find the adjectives in the sentence.
I: The tired girl carried a heavy bag up the steep hill.
A: The adjectives are "tired", "heavy", and "steep".

Q: Write an invitation to a birthday party in two sentences.
A: You are invited to my birthday party on Saturday at 4 p.m. at my house. Please let me know by Thursday if you can
come!

Q: What is 15 percent of 80?
A: 15 percent of 80 is 12, because 0.15 times 80 equals 12.

Q: Turn the statement into a question.
I: The shop opens at nine.
A: As a question, the statement becomes: "Does the shop open at nine?"

Q: Why do we have leap years?
A: The Earth needs about 365 and a quarter days to travel around the Sun. Adding one day every four years keeps the
calendar in step with the seasons.

Q: Recommend a simple breakfast that is high in protein.
A: Try two scrambled eggs with a cup of Greek yogurt and some nuts. It is quick to make and keeps you full for hours.

Q: Combine the two sentences into one.
I: The road was wet. The driver slowed down.
A: One way to combine them is: "The driver slowed down because the road was wet."

Q: What does the idiom "break the ice" mean?
A: To "break the ice" means to do or say something that helps people relax and start talking when they meet for the
first time.

Q: Generate a slogan for a company that sells bicycles.
A: Here is a slogan for the company: "Two wheels, endless freedom."

Q: Is the statement a fact or an opinion?
I: Summer is the best season of the year.
A: It is an opinion, because different people prefer different seasons.

Q: How can I reduce plastic waste at home?
A: Use reusable bags and bottles, buy food with little packaging, and recycle what you can. Choosing glass or metal
containers also helps.

Q: Give the plural of each word.
I: child, leaf, box
A: The plurals are children, leaves, and boxes.

Q: Explain the word "democracy" to a child.
A: Democracy means that the people decide together. They vote for leaders, and everyone's vote counts the same.

Q: Write a polite reply declining a job offer.
A: Thank you very much for the offer. After careful thought, I have decided to accept another position, but I truly
appreciate your time and wish you all the best.

Q: What are the primary colors?
A: The primary colors are red, yellow, and blue. All other colors can be mixed from them.

Q: Give two tips for a job interview.
A: First, research the company so that you can ask good questions. Second, practice clear answers about your
experience and your strengths.

Q: Change the sentence from active to passive voice.
I: The chef prepared the meal.
A: In the passive voice, the sentence is: "The meal was prepared by the chef."

Q: What causes tides?
A: Tides are caused mainly by the gravity of the Moon, and to a lesser degree the Sun, pulling on the water of the
oceans.

Q: Write a SQL query that selects all rows from the table users.
A: You can use this query: `SELECT * FROM users;`. The star means that all columns are returned.

Q: Describe the taste of a lemon.
A: A lemon tastes sharp, sour, and fresh, with a slight bitterness from the peel.

Q: Remove the repeated words from the list.
I: red, blue, red, green, blue
A: Without the repeated words, the list is: red, blue, green.

Q: Why is exercise good for the heart?
A: Regular exercise makes the heart muscle stronger, so it can pump more blood with less effort. It also lowers blood
pressure and reduces stress.

Q: Complete the analogy: bird is to nest as bee is to what?
A: Bird is to nest as bee is to hive, because a hive is the place where bees live.

Q: Give a definition of inflation.
A: Inflation is a general rise in prices over time, which means that the same amount of money buys fewer goods and
services.

Q: Write a thank-you note for a gift.
A: Dear Maria, thank you so much for the beautiful scarf. I love the color and will think of you every time I wear it.

Q: What is the main idea of the text?
I: Bees visit flowers to collect nectar. While doing so, they carry pollen from plant to plant, and many crops depend
on this.
A: The main idea is that bees are important for crops because they pollinate plants while collecting nectar.

Q: Name the largest ocean and one fact about it.
A: The Pacific Ocean is the largest ocean on Earth. It covers about one third of the planet's surface.

Q: How do I stop a nosebleed?
A: Sit up, lean slightly forward, and pinch the soft part of your nose for about ten minutes. See a doctor if it does
not stop.

Q: Give an example of a healthy snack.
A: An apple with a spoonful of peanut butter is a healthy snack that gives you both fiber and protein.

Q: Shorten the sentence without changing its meaning.
I: Due to the fact that it was raining, we made the decision to stay at home.
A: A shorter version is: "Because it was raining, we decided to stay home."

Q: What is an algorithm?
A: An algorithm is a set of step-by-step instructions for solving a problem or completing a task.

Q: Write one sentence about friendship.
A: A true friend stays by your side in hard times and is happy for you in good ones.

Q: Put the events in order.
I: eat dinner, buy vegetables, cook the soup
A: 1. Buy vegetables
|2. Cook the soup
|3. Eat dinner

Q: Which is heavier, a kilogram of iron or a kilogram of feathers?
A: They weigh the same: both are one kilogram. The feathers only take up much more space.
"""
